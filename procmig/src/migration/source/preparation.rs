//! What the deputy prepares while the process still runs.

use super::{MigrateError, PREPARE};
use crate::kernel::freeze::FreezeError;
use crate::kernel::process::{Process, Verdict};
use crate::wire::control::{Migrate, ToDeputy};
use crate::wire::link::LinkId;
use std::sync::Arc;

/// What the deputy has found: the way to a target where not all are on one host. It is given up when this is dropped.
pub(super) struct Preparation<'a> {
    process: &'a Process,
    epoch: u32,
    /// The deputy's link with the target, if that is at another host than home.
    pub(super) link: Option<LinkId>,
    is_held: bool,
}

impl<'a> Preparation<'a> {
    /// Has the deputy find it.
    pub(super) fn of(process: &'a Arc<Process>, order: &Migrate, epoch: u32) -> Result<Self, MigrateError> {
        let is_local = order.host.is_none() && !process.is_remote();
        let mut way = Self { process, epoch, link: None, is_held: !is_local };
        if is_local {
            return Ok(way);
        }
        let attempt = process.begin_attempt();
        let threads = process.threads().len() as u32;
        process.send(&ToDeputy::Prepare { epoch, attempt, host: order.host, node: order.node.clone(), threads });
        way.link = match process.take_verdict(Some(PREPARE)) {
            Some(Verdict::Prepared(link)) if link.is_some() == order.host.is_some() => link,
            Some(Verdict::Kept(reason)) => return Err(MigrateError::Kept(reason)),
            _ if process.ending().is_some() => return Err(FreezeError::Ended.into()),
            _ => return Err(MigrateError::Silent),
        };
        Ok(way)
    }

    /// The process has gone that way.
    pub(super) fn use_up(mut self) {
        self.is_held = false;
    }
}

impl Drop for Preparation<'_> {
    fn drop(&mut self) {
        if self.is_held {
            self.process.send(&ToDeputy::Release { epoch: self.epoch });
        }
    }
}
