//! Faults that tests bring about at each step of a migration.
//!
//! `SKEIN_FAULT`, read once by a node and by a deputy, is a list `STEP=ACTION`, separated by commas. Each comes
//! true once, the first time that somebody is at the step who has the same `SKEIN_FAULT_MARK`: the name of a file,
//! not there yet, that tells all of them that it has happened. A step's name is that of a [`Step`] as it is
//! written there; actions are `kill` (this process dies), `cut` (what is done at the step fails), `stop` (the step
//! takes a minute), `delay` (a quarter of a second), `late` (longer than a process may stand still), `corrupt` and `duplicate` (of the message that is sent there).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Name of the variable.
pub const VARIABLE: &str = "SKEIN_FAULT";

/// A step of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The source is about to offer a process.
    SourceOffer,
    /// The source is about to open a further stream.
    SourceSpread,
    /// The source is about to send pages while the process runs.
    SourcePages,
    /// The source is about to send the rest.
    SourceFrozen,
    /// The source is about to send the image.
    SourceImage,
    /// The source is about to ask the deputy to decide.
    SourceCommit,
    /// The source knows that the process is gone.
    SourceMoved,
    /// The target considers an offer.
    TargetOffer,
    /// The target takes a further stream.
    TargetJoin,
    /// The target takes pages.
    TargetPages,
    /// The target has the image.
    TargetImage,
    /// The target has the deputy's connections.
    TargetAdopt,
    /// The target is told to run the process.
    TargetRun,
    /// The source is about to send pages that it has kept of a process that is the target's.
    SourceServe,
    /// The target waits for such pages.
    TargetCollect,
    /// The deputy looks for a way to a target that is not on the same host as source and home.
    DeputyFind,
    /// The deputy is asked to hold signals back.
    DeputyHold,
    /// The deputy is asked to decide.
    DeputyCommit,
    /// The target has the connections, and waits.
    DeputyAdopted,
    /// The deputy has given the process to the target.
    DeputyMoved,
    /// The deputy's threads have been told to go over to the target.
    DeputyLeft,
    /// A thread of the deputy is about to go over to the target.
    DeputyReconnect,
}

/// All steps.
pub const STEPS: [Step; 22] = [
    Step::SourceOffer,
    Step::SourceSpread,
    Step::SourcePages,
    Step::SourceFrozen,
    Step::SourceImage,
    Step::SourceCommit,
    Step::SourceMoved,
    Step::TargetOffer,
    Step::TargetJoin,
    Step::TargetPages,
    Step::TargetImage,
    Step::TargetAdopt,
    Step::TargetRun,
    Step::SourceServe,
    Step::TargetCollect,
    Step::DeputyFind,
    Step::DeputyHold,
    Step::DeputyCommit,
    Step::DeputyAdopted,
    Step::DeputyMoved,
    Step::DeputyLeft,
    Step::DeputyReconnect,
];

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// This process dies.
    Kill,
    /// What is done fails.
    Cut,
    /// It takes a minute.
    Stop,
    /// It takes a while.
    Delay,
    /// It takes longer than a process may stand still.
    Late,
    /// The message is not what it should be.
    Corrupt,
    /// The message is sent twice.
    Duplicate,
}

struct Fault {
    step: Step,
    action: Action,
    happened: AtomicBool,
}

fn faults() -> &'static [Fault] {
    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();
    FAULTS.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()))
}

fn parse(text: &str) -> Vec<Fault> {
    let fault = |part: &str| {
        let (step, action) = part.split_once('=')?;
        let step = STEPS.into_iter().find(|known| format!("{known:?}") == step)?;
        let action = match action {
            "kill" => Action::Kill,
            "cut" => Action::Cut,
            "stop" => Action::Stop,
            "delay" => Action::Delay,
            "late" => Action::Late,
            "corrupt" => Action::Corrupt,
            "duplicate" => Action::Duplicate,
            _ => return None,
        };
        Some(Fault { step, action, happened: AtomicBool::new(false) })
    };
    text.split(',').filter_map(fault).collect()
}

/// Comes to a step.
///
/// # Errors
/// If the fault is that it fails.
pub fn at(step: Step) -> io::Result<()> {
    match take(step, |action| !matches!(action, Action::Corrupt | Action::Duplicate)) {
        None => Ok(()),
        Some(Action::Kill) => std::process::abort(),
        Some(Action::Stop) => {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Some(Action::Delay) => {
            std::thread::sleep(Duration::from_millis(250));
            Ok(())
        }
        Some(Action::Late) => {
            std::thread::sleep(Duration::from_millis(1200));
            Ok(())
        }
        Some(_) => Err(io::Error::other(format!("a fault that was asked for, at {step:?}"))),
    }
}

/// What is to become of the message that is sent at a step, if anything.
pub fn of_message(step: Step) -> Option<Action> {
    take(step, |action| matches!(action, Action::Corrupt | Action::Duplicate))
}

fn take(step: Step, is_meant: impl Fn(Action) -> bool) -> Option<Action> {
    let due = |fault: &&Fault| {
        fault.step == step
            && is_meant(fault.action)
            && !fault.happened.load(Ordering::SeqCst)
            && is_first()
            && !fault.happened.swap(true, Ordering::SeqCst)
    };
    faults().iter().find(due).map(|fault| fault.action)
}

/// Whether no other process has been at its fault.
fn is_first() -> bool {
    let Some(mark) = std::env::var_os("SKEIN_FAULT_MARK") else { return true };
    std::fs::OpenOptions::new().write(true).create_new(true).open(mark).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_nonsense_is_none() {
        let faults = parse("SourceOffer=kill,TargetRun=stop,Nowhere=cut,SourceImage=fall,=,");
        let read: Vec<_> = faults.iter().map(|fault| (fault.step, fault.action)).collect();
        assert_eq!(read, [(Step::SourceOffer, Action::Kill), (Step::TargetRun, Action::Stop)]);
    }
}
