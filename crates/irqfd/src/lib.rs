// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfd plumbing for interrupts.

#![forbid(unsafe_code)]

mod edge;
mod error;
#[cfg(feature = "event-manager")]
mod event_manager;
mod eventfd;
mod gate;
mod group;
mod inject;
mod ioevent;
mod level;
mod lock;
mod settle;
mod vector;
mod wires;
mod wiring;

#[cfg(feature = "event-manager")]
pub use self::event_manager::{ResampleEvent, ResampleSubscriber};
pub use edge::{EdgeState, EdgeTrigger};
pub use error::{Error, EventfdAction};
pub use group::{Changes, VectorGroup};
pub use inject::{InjectedLine, MsiSender};
pub use ioevent::IoEvent;
pub use level::{LevelFds, LevelState, LevelTrigger, Resample, Resampler};
pub use vector::{InterruptVector, Obstacle, VectorCounts, VectorState};
pub use wires::{EdgeLine, LevelLine, MsiVector};
pub use wiring::Wiring;
