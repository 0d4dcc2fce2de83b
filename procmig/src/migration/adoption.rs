//! A deputy that takes over a process which has arrived: it brings a connection for each thread, and has it run.

use super::image::MAX_THREADS;
use super::target::PATIENCE;
use crate::kernel::Kernel;
use crate::kernel::links::Link;
use crate::wire::control::{Adopt, MAX_MESSAGE, NodeReply, NodeRequest, ToNode};
use crate::wire::frame::FrameError;
use crate::wire::stream::Stream;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Serves a deputy of another host on what becomes the process's control connection: it may take long until the process
/// has arrived.
///
/// # Errors
/// If the connection fails, or the deputy gives the migration up, which it tells by closing it.
pub fn serve_remote(kernel: &Arc<Kernel>, mut control: Stream, link: &Arc<Link>) -> Result<(), FrameError> {
    match control.receive_message(MAX_MESSAGE)?.0 {
        NodeRequest::Adopt(adopt) => serve(kernel, control, adopt, Vec::new(), Some(link)),
        _ => control.send_message(&NodeReply::Refused("a process is to be adopted here".to_owned()), &[]),
    }
}

/// Takes the connections of a process that has arrived, and runs it when its deputy says so. `link` is the deputy's, if
/// that is at another host.
///
/// # Errors
/// If the control connection fails; the deputy keeps the process where it was.
pub fn serve(
    kernel: &Arc<Kernel>,
    mut control: Stream,
    first: Adopt,
    descriptors: Vec<OwnedFd>,
    link: Option<&Arc<Link>>,
) -> Result<(), FrameError> {
    control.set_patience(Some(PATIENCE))?;
    let ticket = first.ticket;
    let mut calls = HashMap::new();
    let mut take = |adopt: &Adopt, descriptors: Vec<OwnedFd>| {
        let streams: Option<Vec<Stream>> = match link {
            None => Some(descriptors.into_iter().map(|passed| UnixStream::from(passed).into()).collect()),
            Some(link) => adopt.connections.iter().map(|name| link.take(name)).collect(),
        };
        let Some(streams) = streams else { return false };
        let is_right = adopt.threads.len() == streams.len() && calls.len() + streams.len() <= MAX_THREADS;
        calls.extend(adopt.threads.iter().copied().zip(streams));
        is_right && adopt.ticket == ticket
    };
    let (mut more, mut right) = (first.more, take(&first, descriptors));
    while more && right {
        match control.receive_message::<NodeRequest>(MAX_MESSAGE)? {
            (NodeRequest::Adopt(next), descriptors) => (more, right) = (next.more, take(&next, descriptors)),
            _ => right = false,
        }
    }
    let refuse = |control: &mut Stream, reason: String| control.send_message(&NodeReply::Refused(reason), &[]);
    if !right {
        return refuse(&mut control, "a deputy must bring a connection for each thread".to_owned());
    }
    let Some(mut arrival) = kernel.arrivals.take(&ticket).filter(|arrival| arrival.is_over(link)) else {
        return refuse(&mut control, "no such process has arrived, or it waits no more".to_owned());
    };
    if let Err(error) = arrival.connect(calls) {
        return refuse(&mut control, crate::chain(&error));
    }
    control.send_message(&NodeReply::Done, &[])?;
    if let (ToNode::Run { epoch }, _) = control.receive_message(MAX_MESSAGE)?
        && arrival.is_for(epoch)
    {
        control.set_patience(None)?;
        arrival.run(control);
    }
    // Else the deputy keeps it where it was.
    Ok(())
}
