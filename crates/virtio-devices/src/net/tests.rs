// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The card without a tap (datagram sockets keep frames apart just as well), and with one.

mod opening;
mod pairs;
mod queues;
mod taps;
