//! The forwarding table: what becomes of each x86-64 system call, and what its arguments are.
//!
//! The table is data. [`row`] finds a call's row; [`Row::shapes`] gives the shape of each argument,
//! by command where the call has commands (`ioctl`, `fcntl`, …). [`marshal`] carries a call over a
//! connection by these shapes, and the deputy executes it by them, so adding a call is adding a row.

mod forms;
pub mod marshal;
mod messages;
pub mod partly;
mod table_high;
mod table_low;
#[cfg(test)]
mod tests;
mod why;

use nix::errno::Errno;

/// Who serves a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The personality, in the node.
    Local,
    /// The deputy, by these shapes.
    Forward(Form),
    /// The personality decides; what it does not serve itself can be forwarded if there is a form.
    Split(Option<Form>),
    /// Nobody: the guest gets this error, as from a kernel without the feature.
    Refuse(Errno),
}

/// How a call's shapes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// They are always these.
    Plain(&'static [Shape]),
    /// By the request number.
    Ioctl,
    /// By the command.
    Fcntl,
    /// By the option.
    Prctl,
    /// By the command.
    Semctl,
    /// By the command.
    Shmctl,
    /// By the command.
    Msgctl,
    /// Options with pointers inside are refused.
    Setsockopt,
    /// Options with pointers inside are refused.
    Getsockopt,
    /// `adjtimex` and `clock_adjtime`: reading only.
    ClockAdjust,
    /// The deputy's own descriptors are spared.
    CloseRange,
    /// Only what makes no other system of a process.
    Personality,
    /// Only what is a thread's own, and no descriptors: those are the deputy's too.
    Unshare,
}

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A number, passed as it is.
    Value,
    /// A number that names a descriptor; the deputy's own answer `EBADF`.
    Fd,
    /// A NUL-terminated string of at most 4095 bytes.
    Path,
    /// A NUL-terminated string of which 16 bytes count.
    Name,
    /// Always NULL at home: a signal mask, which the personality applies.
    Null,
    /// A buffer that the kernel reads.
    In(Len),
    /// A buffer that the kernel reads up to a length which only it knows, at most this.
    InUpTo(u32),
    /// A buffer that the kernel writes; how much of it comes back.
    Out(Len, Back),
    /// A buffer that the kernel reads and writes; it comes back even if the call fails.
    InOut(Len),
    /// An array of `iovec`, counted by the next argument, that the kernel reads from.
    VectorIn,
    /// An array of `iovec`, counted by the next argument, that the kernel writes to.
    VectorOut,
    /// An `ifconf`: the length of a buffer and a pointer to it.
    InterfaceList,
    /// A `msghdr` to send.
    MessageIn,
    /// A `msghdr` to receive into.
    MessageOut,
    /// An array of `mmsghdr` to send, counted by the next argument.
    MessagesIn,
    /// An array of `mmsghdr` to receive into, counted by the next argument.
    MessagesOut,
}

/// How long a buffer is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Len {
    /// Always so long.
    Const(u32),
    /// The value of that argument.
    Arg(u8),
    /// The value of that argument, which is an `int`, times so many bytes.
    ArgTimes(u8, u32),
    /// The value of that argument and so many bytes more.
    ArgPlus(u8, u32),
    /// The `u32` that that argument points to, but at most so many bytes.
    Deref(u8, u32),
    /// A set of as many bits as that argument says, in words of 64.
    FdBits(u8),
    /// `capget(2)` data: 12 or 24 bytes by the version that that argument points to.
    CapData(u8),
    /// A head of so many bytes, and for each of the count at that offset in it so many bytes more.
    Counted {
        /// Bytes of the head.
        head: u32,
        /// Where in it the `u32` count is.
        at: u32,
        /// Bytes of each element.
        each: u32,
    },
}

/// How much of a buffer that the kernel wrote comes back, if the call succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// All of it.
    All,
    /// All of it if the result is not 0.
    Positive,
    /// The result times so many bytes.
    Ret(u32),
    /// The result and so many bytes more.
    RetPlus(u32),
    /// As many bytes as the `u32` that that argument points to says after the call.
    Length(u8),
    /// `GETALL`: two bytes for each semaphore of the set.
    Semaphores,
}

/// One system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub nr: u32,
    /// Its name, without `sys_`.
    pub name: &'static str,
    /// How many arguments it has.
    pub arguments: u8,
    /// Who serves it.
    pub class: Class,
    /// If nobody does: why, for a user. Else empty.
    pub why: &'static str,
    /// It may block for long, so that a signal must break it off.
    pub may_block: bool,
}

impl Row {
    const fn blocking(mut self) -> Self {
        self.may_block = true;
        self
    }

    /// How it is forwarded, if it can be.
    pub fn form(&self) -> Option<Form> {
        match self.class {
            Class::Forward(form) | Class::Split(Some(form)) => Some(form),
            _ => None,
        }
    }

    /// The shapes of its arguments when it is called with `args`.
    ///
    /// # Errors
    /// The errno for the guest if this call, with these arguments, is not forwarded.
    pub fn shapes(&self, args: &[u64; 6]) -> Result<[Shape; 6], Errno> {
        match self.class {
            Class::Forward(form) | Class::Split(Some(form)) => forms::resolve(form, self.nr, args),
            Class::Refuse(errno) => Err(errno),
            Class::Local | Class::Split(None) => Err(Errno::ENOSYS),
        }
    }
}

const fn make(nr: u32, name: &'static str, arguments: u8, class: Class) -> Row {
    Row { nr, name, arguments, class, why: "", may_block: false }
}

const fn local(nr: u32, name: &'static str, arguments: u8) -> Row {
    make(nr, name, arguments, Class::Local)
}

const fn split(nr: u32, name: &'static str, arguments: u8) -> Row {
    make(nr, name, arguments, Class::Split(None))
}

const fn split_forward(nr: u32, name: &'static str, shapes: &'static [Shape]) -> Row {
    make(nr, name, shapes.len() as u8, Class::Split(Some(Form::Plain(shapes))))
}

const fn split_form(nr: u32, name: &'static str, arguments: u8, form: Form) -> Row {
    make(nr, name, arguments, Class::Split(Some(form)))
}

const fn forward(nr: u32, name: &'static str, shapes: &'static [Shape]) -> Row {
    make(nr, name, shapes.len() as u8, Class::Forward(Form::Plain(shapes)))
}

const fn forward_form(nr: u32, name: &'static str, arguments: u8, form: Form) -> Row {
    make(nr, name, arguments, Class::Forward(form))
}

const fn refuse(nr: u32, name: &'static str, arguments: u8, errno: Errno, why: &'static str) -> Row {
    let mut row = make(nr, name, arguments, Class::Refuse(errno));
    row.why = why;
    row
}

/// First number of the second block; the numbers between the blocks are not used by Linux.
const SECOND_BLOCK: u32 = 424;
const FIRST_BLOCK_END: u32 = 336;

/// The row of a system call.
pub fn row(nr: u32) -> Option<&'static Row> {
    let index = match nr {
        0..FIRST_BLOCK_END => nr,
        SECOND_BLOCK.. => nr - SECOND_BLOCK + FIRST_BLOCK_END,
        _ => return None,
    } as usize;
    let low = table_low::ROWS;
    low.get(index).or_else(|| table_high::ROWS.get(index - low.len()))
}

/// The name of a system call.
pub fn name(nr: u32) -> Option<&'static str> {
    row(nr).map(|row| row.name)
}

/// Whether home's kernel may raise signals for the caller by this call, or before it returns: the
/// guest must see them first.
pub fn raises_signals(nr: u32) -> bool {
    matches!(
        i64::from(nr),
        libc::SYS_wait4
            | libc::SYS_waitid
            | libc::SYS_kill
            | libc::SYS_tkill
            | libc::SYS_tgkill
            | libc::SYS_rt_sigqueueinfo
            | libc::SYS_rt_tgsigqueueinfo
            | libc::SYS_pidfd_send_signal
    )
}

/// Every row, by number.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    table_low::ROWS.iter().chain(table_high::ROWS)
}
