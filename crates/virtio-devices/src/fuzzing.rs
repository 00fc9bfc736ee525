// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices without their threads, for fuzz targets: what a thread would do when a descriptor is ready is done by who calls
//! [`EventHandler::ready`], with tokens from 0 on for the device's own, and from 16 on for connections of a vsock.

use std::os::fd::OwnedFd;

use crate::{ActivateError, Activation, Balloon, Console, EventHandler, Events, Vsock};

/// A device at work, as its thread has it.
pub type Body = (Events, Box<dyn EventHandler>);

/// A queue pair and the control queue of a network card, with a datagram socket in place of the tap. Queues 0, 1 and 2.
///
/// # Errors
/// If a queue is missing, or the process has no descriptor left.
pub fn net(tap: OwnedFd, activation: Activation) -> Result<Body, ActivateError> {
    let (events, handler) = crate::net::imitated(tap, activation)?;
    Ok((events, Box::new(handler)))
}

/// A console.
///
/// # Errors
/// As for [`net`].
pub fn console(console: &Console, activation: Activation) -> Result<Body, ActivateError> {
    let (events, handler) = console.port(activation)?;
    Ok((events, Box::new(handler)))
}

/// Sockets.
///
/// # Errors
/// As for [`net`].
pub fn vsock(vsock: &Vsock, activation: Activation) -> Result<Body, ActivateError> {
    let (events, handler) = vsock.multiplexer(activation)?;
    Ok((events, Box::new(handler)))
}

/// A balloon.
///
/// # Errors
/// As for [`net`].
pub fn balloon(balloon: &Balloon, activation: Activation) -> Result<Body, ActivateError> {
    let (events, handler) = balloon.inflator(activation)?;
    Ok((events, Box::new(handler)))
}
