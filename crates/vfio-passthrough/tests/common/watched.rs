// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that somebody watches, who looks or does something at moments that a test cannot reach from outside.

use std::{fmt, io};

use vfio_passthrough::fake::FakeDevice;
use vfio_passthrough::{DeviceInfo, HotReset, HotResetInfo, IrqInfo, IrqSet, Mapping, RawDevice, RegionInfo};

/// What is done at those moments; nothing, unless said.
pub trait Watcher: Send + Sync {
    /// What it says of itself, if that is not what the fake says.
    fn region(&self, info: RegionInfo) -> RegionInfo {
        info
    }

    fn irq(&self, info: IrqInfo) -> IrqInfo {
        info
    }

    fn before_write(&self, _fake: &FakeDevice, _offset: u64, _data: &[u8]) {}

    fn after_set_irqs(&self, _fake: &FakeDevice, _set: &IrqSet<'_>) {}

    fn before_reset(&self, _fake: &FakeDevice) {}
}

pub struct Watched<W>(pub FakeDevice, pub W);

impl<W> fmt::Debug for Watched<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<W: Watcher> RawDevice for Watched<W> {
    fn info(&self) -> io::Result<DeviceInfo> {
        self.0.info()
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.0.region(index).map(|info| self.1.region(info))
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.0.irq(index).map(|info| self.1.irq(info))
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.1.before_write(&self.0, offset, data);
        self.0.write(offset, data)
    }

    fn map(&self, offset: u64, len: usize, writable: bool) -> io::Result<Mapping> {
        self.0.map(offset, len, writable)
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        let done = self.0.set_irqs(set);
        self.1.after_set_irqs(&self.0, set);
        done
    }

    fn reset(&self) -> io::Result<()> {
        self.1.before_reset(&self.0);
        self.0.reset()
    }

    fn hot_reset_info(&self) -> io::Result<HotResetInfo> {
        self.0.hot_reset_info()
    }

    fn hot_reset(&self, reset: &HotReset<'_>) -> io::Result<()> {
        self.0.hot_reset(reset)
    }
}
