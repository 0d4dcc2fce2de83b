//! The table against the kernel's own list.

use super::{Class, Form, Shape, name, row, rows};

/// The kernel's list of x86-64 system calls, where its headers are installed.
const HEADER: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";

#[test]
fn rows_are_found_by_their_numbers() {
    let mut expected = (0..=335).chain(424..=471);
    for each in rows() {
        assert_eq!(Some(each.nr), expected.next());
        assert_eq!(row(each.nr), Some(each));
        assert_eq!(name(each.nr), Some(each.name));
    }
    assert_eq!(expected.next(), None);
    assert_eq!((row(336), row(423), row(472), row(u32::MAX)), (None, None, None, None));
}

#[test]
fn every_call_of_the_kernels_own_list_is_in_the_table_with_its_number() {
    let Ok(header) = std::fs::read_to_string(HEADER) else { return };
    let mut seen = 0;
    for line in header.lines() {
        let Some((call, nr)) = line.strip_prefix("#define __NR_").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        assert_eq!(name(nr.trim().parse().expect("a number")), Some(call));
        seen += 1;
    }
    assert!(seen > 300, "only {seen} calls in {HEADER}");
}

#[test]
fn rows_have_at_most_six_arguments_and_vectors_have_a_count() {
    for each in rows() {
        assert!(each.arguments <= 6, "{}", each.name);
        let Some(Form::Plain(shapes)) = each.form() else { continue };
        assert_eq!(shapes.len(), each.arguments as usize, "{}", each.name);
        for (i, shape) in shapes.iter().enumerate() {
            if matches!(shape, Shape::VectorIn | Shape::VectorOut | Shape::MessagesIn | Shape::MessagesOut) {
                assert_eq!(shapes.get(i + 1), Some(&Shape::Value), "{}", each.name);
            }
        }
    }
}

#[test]
fn refused_calls_say_their_errno_and_local_ones_are_not_forwarded() {
    use nix::errno::Errno;
    let shapes = |nr: u32| row(nr).expect("a row").shapes(&[0; 6]);
    assert_eq!(shapes(101), Err(Errno::EPERM));
    assert_eq!(row(9).map(|row| row.class), Some(Class::Split(None)));
    assert_eq!(shapes(9), Err(Errno::ENOSYS));
    assert_eq!(shapes(202), Err(Errno::ENOSYS));
}

/// Memory of a few pages, all of it random.
struct Noise(std::cell::RefCell<Vec<u8>>);

impl crate::usermem::UserMemory for Noise {
    fn read(&self, address: vmm::addr::GuestVirtAddr, buffer: &mut [u8]) -> Result<(), nix::errno::Errno> {
        let from = usize::try_from(address.0).map_err(|_| nix::errno::Errno::EFAULT)?;
        let end = from.checked_add(buffer.len()).ok_or(nix::errno::Errno::EFAULT)?;
        buffer.copy_from_slice(self.0.borrow().get(from..end).ok_or(nix::errno::Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, address: vmm::addr::GuestVirtAddr, bytes: &[u8]) -> Result<(), nix::errno::Errno> {
        let from = usize::try_from(address.0).map_err(|_| nix::errno::Errno::EFAULT)?;
        let end = from.checked_add(bytes.len()).ok_or(nix::errno::Errno::EFAULT)?;
        self.0.borrow_mut().get_mut(from..end).ok_or(nix::errno::Errno::EFAULT)?.copy_from_slice(bytes);
        Ok(())
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn random_arguments_and_replies_are_errors_at_worst() {
    let mut state = 0x1234_5678_9abc_def1;
    let memory = Noise((0..16384).map(|_| random(&mut state) as u8 & 0x83).collect::<Vec<_>>().into());
    for round in 0..40 {
        for each in rows() {
            let args: [u64; 6] = std::array::from_fn(|_| match random(&mut state) % 5 {
                0 => 0,
                1 => random(&mut state),
                2 => random(&mut state) % 64,
                3 => u64::MAX - random(&mut state) % 64,
                _ => random(&mut state) % 16384,
            });
            let mut payload = Vec::new();
            if super::marshal::encode(each.nr, &args, &memory, &mut payload).is_ok() {
                assert!(payload.len() <= crate::wire::call::MAX_PAYLOAD, "{}", each.name);
            }
            // The request's own payload looks like a reply now and then; else noise.
            if round % 2 == 0 {
                payload = (0..random(&mut state) % 200).map(|_| random(&mut state) as u8 & 0x07).collect();
            }
            let ret = (random(&mut state) % 100) as i64 - 5;
            let _ = super::marshal::decode(each.nr, &args, ret, &payload, &memory);
        }
    }
}

#[test]
fn lengths_are_cut_only_where_they_are_lengths() {
    use super::marshal::{MAX_BUFFER, cut_lengths};
    let cut = |nr: i64, mut args: [u64; 6]| {
        let shapes = row(nr as u32).expect("a row").shapes(&args).expect("shapes");
        cut_lengths(&mut args, &shapes);
        args
    };
    assert_eq!(cut(libc::SYS_read, [1, 2, 100, 0, 0, 0])[2], 100);
    assert!(cut(libc::SYS_read, [1, 2, 1 << 40, 0, 0, 0])[2] <= MAX_BUFFER as u64);
    assert_eq!(cut(libc::SYS_read, [1, 2, u64::MAX, 0, 0, 0])[2], u64::MAX, "the kernel refuses it");
    assert!(cut(libc::SYS_epoll_wait, [1, 2, i32::MAX as u64, 0, 0, 0])[2] * 12 <= MAX_BUFFER as u64);
    assert_eq!(cut(libc::SYS_lseek, [1, 1 << 40, 0, 0, 0, 0])[1], 1 << 40);
}
