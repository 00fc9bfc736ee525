// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::str::FromStr;

use irqchip::{CreateDevice, DeviceKind};

use crate::config::{MAX_SPIS, SPI_BLOCK, spi};
use crate::{ConfigError, GicConfig, GicVersion, HostGic, MsiConfig, SpiRange};

/// Which GIC a user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum VersionChoice {
    /// GICv3 where the host has it, GICv2 where not.
    #[default]
    Auto,
    /// GICv2 or nothing.
    V2,
    /// GICv3 or nothing.
    V3,
}

/// How the guest's devices shall send MSIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MsiChoice {
    /// Over an ITS where the VM can have one, over a GICv2m frame where not.
    #[default]
    Auto,
    /// Over one or more ITSes or not at all.
    Its,
    /// Over a GICv2m frame, also beside a GICv3. (Linux uses the frame beside a GICv3 that has no ITS:
    /// `drivers/irqchip/irq-gic-v3.c`, `gic_init_bases`.)
    V2m,
    /// There are none: devices use wires.
    None,
}

/// A text that names no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {expected}")]
pub struct ParseChoiceError {
    /// What would have been understood.
    pub expected: &'static str,
}

impl FromStr for VersionChoice {
    type Err = ParseChoiceError;

    /// Takes `auto`, `v2` and `v3`.
    fn from_str(text: &str) -> Result<Self, ParseChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "v2" => Ok(Self::V2),
            "v3" => Ok(Self::V3),
            _ => Err(ParseChoiceError { expected: "auto, v2, v3" }),
        }
    }
}

impl fmt::Display for VersionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

impl FromStr for MsiChoice {
    type Err = ParseChoiceError;

    /// Takes `auto`, `its`, `v2m` and `none`.
    fn from_str(text: &str) -> Result<Self, ParseChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "its" => Ok(Self::Its),
            "v2m" => Ok(Self::V2m),
            "none" => Ok(Self::None),
            _ => Err(ParseChoiceError { expected: "auto, its, v2m, none" }),
        }
    }
}

impl fmt::Display for MsiChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Its => "its",
            Self::V2m => "v2m",
            Self::None => "none",
        })
    }
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GicRequest {
    /// Which GIC.
    pub version: VersionChoice,
    /// How MSIs travel.
    pub msi: MsiChoice,
    /// How many vCPUs the VM will have: 1 to 8 with a GICv2, to 512 with a GICv3. Neither can grow later: an initialised vGIC
    /// lets no vCPU be created.
    pub vcpus: u32,
    /// How many SPIs are needed for wires, at least. The kernel counts them in blocks of 32, and the VM gets whole blocks.
    pub spis: u32,
    /// How many ITSes, if there are any: at least 1. More than one is for guests whose devices shall not share a command queue.
    pub its_count: u8,
    /// How many SPIs a GICv2m frame has for MSIs, if there is one: at least 1. They come on top of `spis`.
    pub v2m_spis: u32,
}

impl Default for GicRequest {
    /// The best GIC that the host has, one vCPU, 64 wires, one ITS or a frame of 64 SPIs.
    fn default() -> Self {
        Self {
            version: VersionChoice::Auto,
            msi: MsiChoice::Auto,
            vcpus: 1,
            spis: 64,
            its_count: 1,
            v2m_spis: 64,
        }
    }
}

/// Answers whether the host has a kind of device.
type Ask<'a> = dyn FnMut(DeviceKind) -> Result<bool, irqchip::Error> + 'a;

impl GicRequest {
    /// What the VM gets on a host that was probed before.
    ///
    /// # Errors
    /// When the host lacks what is asked for (the error says what it has), or when a number is out of range.
    pub fn resolve(&self, host: &HostGic) -> Result<GicConfig, ConfigError> {
        self.decide(&mut |kind| {
            Ok(match kind {
                DeviceKind::GicV2 => host.v2,
                DeviceKind::GicV3 => host.v3,
                DeviceKind::Its => host.its,
                _ => false,
            })
        })
    }

    /// What the VM gets on this host, asking the kernel only for what the decision depends on: two calls where a GICv3 with
    /// ITS is wanted and there. Nothing is created and nothing changes on the VM.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), and when the kernel refuses the question itself.
    pub fn resolve_on<V: CreateDevice + ?Sized>(&self, vm: &V) -> Result<GicConfig, ConfigError> {
        self.decide(&mut |kind| vm.supports_device(kind))
    }

    fn decide(&self, host: &mut Ask<'_>) -> Result<GicConfig, ConfigError> {
        let version = self.decide_version(host)?;
        let max = version.max_vcpus();
        if self.vcpus == 0 || self.vcpus > max {
            let host = HostGic::ask(host).map_err(ConfigError::Probe)?;
            return Err(ConfigError::Vcpus { version, vcpus: self.vcpus, max, host });
        }
        let wired = blocks_of_spis(self.spis)?;
        let msi = self.decide_msi(version, wired, host)?;
        let total = match msi {
            MsiConfig::V2m { spis } => blocks_of_spis(wired.saturating_add(spis.count()))?,
            MsiConfig::Its { .. } | MsiConfig::None => wired,
        };
        Ok(GicConfig::new(version, self.vcpus, total, msi))
    }

    fn decide_version(&self, host: &mut Ask<'_>) -> Result<GicVersion, ConfigError> {
        let wanted = match self.version {
            VersionChoice::Auto => None,
            VersionChoice::V2 => Some(GicVersion::V2),
            VersionChoice::V3 => Some(GicVersion::V3),
        };
        for version in [GicVersion::V3, GicVersion::V2] {
            if wanted.is_none_or(|wanted| wanted == version)
                && host(version.device_kind()).map_err(ConfigError::Probe)?
            {
                return Ok(version);
            }
        }
        let host = HostGic::ask(host).map_err(ConfigError::Probe)?;
        Err(match wanted {
            Some(wanted) if host.v2 || host.v3 => ConfigError::NoSuchVersion { wanted, host },
            _ => ConfigError::NoGic,
        })
    }

    /// `wired` is where the SPIs for wires end.
    fn decide_msi(
        &self,
        version: GicVersion,
        wired: u32,
        host: &mut Ask<'_>,
    ) -> Result<MsiConfig, ConfigError> {
        let may_be_its = match self.msi {
            MsiChoice::Auto => version == GicVersion::V3,
            MsiChoice::Its => true,
            MsiChoice::V2m | MsiChoice::None => false,
        };
        if may_be_its {
            if version == GicVersion::V3 && host(DeviceKind::Its).map_err(ConfigError::Probe)? {
                if self.its_count == 0 {
                    return Err(ConfigError::NoItsCount);
                }
                return Ok(MsiConfig::Its { count: self.its_count });
            }
            if self.msi == MsiChoice::Its {
                let host = HostGic::ask(host).map_err(ConfigError::Probe)?;
                return Err(ConfigError::NoIts { version, asked: self.version, host });
            }
        }
        if self.msi == MsiChoice::None {
            return Ok(MsiConfig::None);
        }
        if self.v2m_spis == 0 {
            return Err(ConfigError::EmptyV2mFrame);
        }
        // The frame starts on a block of 32: a guest gives a device several messages by letting it change the low bits of
        // one SPI's number, so blocks of vectors are aligned within the frame *and* must be so as INTIDs.
        let asked = wired.saturating_add(self.v2m_spis);
        if asked > MAX_SPIS {
            return Err(ConfigError::Spis { asked, max: MAX_SPIS });
        }
        Ok(MsiConfig::V2m { spis: SpiRange::new(spi(wired)?, self.v2m_spis) })
    }
}

/// `asked` SPIs in whole blocks, at least one.
fn blocks_of_spis(asked: u32) -> Result<u32, ConfigError> {
    if asked > MAX_SPIS {
        return Err(ConfigError::Spis { asked, max: MAX_SPIS });
    }
    Ok(asked.max(1).next_multiple_of(SPI_BLOCK))
}
