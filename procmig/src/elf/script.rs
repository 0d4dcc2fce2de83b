//! The first line of a script, read as Linux reads it.

/// Bytes of a file that Linux looks at to tell its kind.
pub const HEAD_SIZE: usize = 256;

/// What a `#!` line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Path of the program that runs the script.
    pub interpreter: Vec<u8>,
    /// The rest of the line, one argument whatever it holds.
    pub argument: Option<Vec<u8>>,
}

impl Script {
    /// The arguments of the interpreter, given the script's own.
    ///
    /// Argument 0 of the script is replaced by the interpreter, its argument and the script's path.
    pub fn arguments(&self, path: &[u8], arguments: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut all = vec![self.interpreter.clone()];
        all.extend(self.argument.clone());
        all.push(path.to_vec());
        all.extend(arguments.iter().skip(1).cloned());
        all
    }
}

/// Whether a file that starts with `head` claims to be a script.
pub fn is_script(head: &[u8]) -> bool {
    head.starts_with(b"#!")
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Reads the `#!` line of a file that starts with `head`; `None` (`ENOEXEC`) if it has none that
/// Linux would take: no interpreter, or one that is cut off at 255 bytes.
///
/// The rules, odd as they are, are those of `fs/binfmt_script.c`.
pub fn parse(head: &[u8]) -> Option<Script> {
    if !is_script(head) {
        return None;
    }
    // A short file is followed by zeros, and the last byte is never part of the line.
    let mut buffer = [0; HEAD_SIZE];
    let taken = head.len().min(HEAD_SIZE);
    buffer[..taken].copy_from_slice(&head[..taken]);
    let last = HEAD_SIZE - 1;

    let stop = buffer.iter().position(|&byte| byte == b'\n' || byte == 0);
    let mut end = match stop {
        Some(at) if buffer[at] == b'\n' => at,
        _ => {
            let name = (2..=last).find(|&at| !is_blank(buffer[at]))?;
            // Without a blank or NUL after it the path may have been cut off.
            (name..last).find(|&at| is_blank(buffer[at]) || buffer[at] == 0)?;
            stop.unwrap_or(last)
        }
    };
    while end > 2 && is_blank(buffer[end - 1]) {
        end -= 1;
    }
    let line = &buffer[2..end];
    let name = line.iter().position(|&byte| !is_blank(byte))?;
    let rest = &line[name..];
    let name_end = rest.iter().position(|&byte| is_blank(byte) || byte == 0).unwrap_or(rest.len());
    let interpreter = rest[..name_end].to_vec();
    if interpreter.is_empty() {
        return None;
    }
    let argument = match rest.get(name_end) {
        Some(&byte) if is_blank(byte) => {
            let after = &rest[name_end..];
            after.iter().position(|&byte| !is_blank(byte)).map(|start| {
                let argument = &after[start..];
                let cut = argument.iter().position(|&byte| byte == 0).unwrap_or(argument.len());
                argument[..cut].to_vec()
            })
        }
        _ => None,
    };
    Some(Script { interpreter, argument: argument.filter(|argument| !argument.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(interpreter: &str, argument: Option<&str>) -> Option<Script> {
        Some(Script { interpreter: interpreter.into(), argument: argument.map(Into::into) })
    }

    #[test]
    fn a_line_is_an_interpreter_and_at_most_one_argument() {
        assert_eq!(parse(b"#!/bin/sh\necho"), script("/bin/sh", None));
        assert_eq!(parse(b"#! \t/bin/sh \t \necho"), script("/bin/sh", None));
        assert_eq!(parse(b"#!/usr/bin/env  -S a b \n"), script("/usr/bin/env", Some("-S a b")));
        assert_eq!(parse(b"#!/bin/sh -e"), script("/bin/sh", Some("-e")));
        assert_eq!(parse(b"#!/bin/sh"), script("/bin/sh", None));
    }

    #[test]
    fn a_line_without_an_interpreter_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"#"), None);
        assert_eq!(parse(b"#!"), None);
        assert_eq!(parse(b"#!  \t\n/bin/sh"), None);
        assert_eq!(parse(b"echo"), None);
    }

    #[test]
    fn a_path_that_may_be_cut_off_is_refused_but_a_long_argument_is_cut() {
        let mut long = b"#!/".to_vec();
        long.extend([b'a'; 300]);
        assert_eq!(parse(&long), None);
        let mut long = b"#!/bin/sh ".to_vec();
        long.extend([b'a'; 300]);
        let script = parse(&long).expect("a script");
        assert_eq!(script.argument.map(|argument| argument.len()), Some(255 - 10));
    }

    #[test]
    fn the_script_takes_the_place_of_argument_zero() {
        let script = parse(b"#!/bin/sh -e\n").expect("a script");
        let arguments = script.arguments(b"./x", &[b"x".to_vec(), b"1".to_vec()]);
        assert_eq!(arguments, [&b"/bin/sh"[..], b"-e", b"./x", b"1"]);
    }
}
