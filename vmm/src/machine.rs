// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: everything put together in the order that the kernel wants, and taken apart in reverse.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use gsi_routing::{Router, models};
use irqfd::{LevelTrigger, Resample, ResampleSubscriber, Wiring};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::Kvm;
use kvm_irqchip::KvmVm;
use vgic::{GicLayout, InitializedVgic, MmioRegion, Vgic};

use crate::boot;
use crate::bus::Bus;
use crate::config::{Config, OnReset};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::host::{create_vm, gic_request, open_kvm};
use crate::kernel::{Initrd, Kernel};
use crate::layout;
use crate::load::{check_beside_the_guest, load, seed};
use crate::outcome::{Outcome, Verdict};
use crate::report::Report;
use crate::rtc::RealTimeClock;
use crate::serial::{SerialPort, Stdout};
use crate::signals::{self, Signals, Taken, Wake};
use crate::status::Status;
use crate::sys::{self, VmMemory};
use crate::terminal::{self, RawTerminal};
use crate::v2m::MsiFrame;
use crate::vcpu::{self, Ending, Features, RunningVcpu, Vcpu};
use crate::{fdt, memory};

/// Runs a guest to its end, as often as it resets itself.
pub(crate) fn run_guest(config: &Config, kernel: Kernel, initrd: Option<Initrd>) -> Result<u8> {
    let kvm = open_kvm()?;
    vcpu::register_kick()?;
    // Before the terminal is set, which a signal would leave as it is then, and before there are other threads.
    let signals = Taken::new()?;
    let terminal = RawTerminal::enter().map_err(|e| Error::failure("cannot set the terminal").because(e))?;
    let mut files = Some((kernel, initrd));
    loop {
        // A VM cannot be reset: its GIC and vCPUs keep their state for life. A guest that resets itself gets a new one.
        let (kernel, initrd) = match files.take() {
            Some(files) => files,
            None => (
                Kernel::open(&config.kernel, config.memory)?,
                config.initrd.as_deref().map(Initrd::open).transpose()?,
            ),
        };
        let unchecked = initrd.as_ref().and_then(Initrd::unchecked);
        let machine = Machine::build(config, &kvm, kernel, initrd)?;
        let outcome = machine.run(signals.clone(), unchecked)?;
        match (outcome, config.on_reset) {
            (Outcome::Reset, OnReset::Restart) => {
                tracing::info!("the guest resets itself: starting it again")
            }
            (Outcome::Reset, OnReset::Exit) => return Ok(Status::GuestReset.code()),
            (Outcome::PowerOff, _) => return Ok(Status::PowerOff.code()),
            (Outcome::UserQuit, _) => return Ok(Status::UserQuit.code()),
            (Outcome::Signal(number), _) => return Ok(signals::exit_code(number)),
            (Outcome::Failed(e), _) => {
                drop(terminal);
                return Err(e);
            }
        }
    }
}

/// A machine that is ready to run. Fields are dropped in this order: what uses comes before what is used.
struct Machine {
    vcpus: Vec<Vcpu>,
    parts: Parts,
}

/// What stays put while the vCPUs run.
struct Parts {
    bus: Arc<Bus>,
    serial: Arc<SerialPort>,
    line: LevelTrigger,
    gic: InitializedVgic,
    features: Features,
    config: Config,
    _memory: VmMemory,
    returns: Arc<AtomicU64>,
}

/// After the guest's EOI: the line goes up again while the port still has something to say.
impl Resample for SerialPort {
    fn resampled(&self) -> bool {
        self.has_something_to_say()
    }
}

impl Machine {
    /// Builds a machine in the order that KVM wants: memory, GIC with its addresses, vCPUs, GIC initialised, interrupts
    /// connected, guest loaded.
    fn build(config: &Config, kvm: &Kvm, mut kernel: Kernel, initrd: Option<Initrd>) -> Result<Self> {
        let placement = boot::place(
            kernel.text_offset(),
            kernel.image_size(),
            initrd.as_ref().map_or(0, Initrd::len),
            config.memory,
        )?;
        let vm_fd = Arc::new(create_vm(kvm, config)?);
        let vm = Arc::new(KvmVm::new(Arc::clone(&vm_fd)));
        let host = |what: &str| Error::host(format!("cannot {what}"));

        let gic_config = gic_request(config).resolve_on(&*vm).map_err(|e| {
            Error::host("this host cannot have the interrupt controller asked for").because(e)
        })?;
        let gic_layout = GicLayout::solve(&gic_config, &layout::GIC_WINDOWS)
            .map_err(|e| Error::failure("cannot lay out the interrupt controller").because(e))?;
        let memory = VmMemory::new(Arc::clone(&vm_fd), memory::create(config)?)
            .map_err(|e| host("give the VM its memory").because(e))?;

        let gic = Vgic::create(&*vm, gic_config)
            .and_then(|gic| gic.set_addresses(gic_layout))
            .map_err(|e| host("create the interrupt controller").because(e))?;
        let features = Features::probe(&vm_fd);
        let mut target = kvm_vcpu_init::default();
        vm_fd
            .get_preferred_target(&mut target)
            .map_err(|e| host("find out about the host's CPUs").because(e))?;
        let vcpus = (0..config.cpus)
            .map(|index| Vcpu::create(&vm_fd, index, &target, features))
            .collect::<Result<Vec<_>>>()?;
        let gic = gic
            .vcpus_final(config.cpus)
            .and_then(|gic| gic.init())
            .map_err(|e| host("initialise the interrupt controller").because(e))?;
        if features.pmu {
            let ppi = layout::pmu_ppi().map_err(|e| Error::failure("no PMU interrupt").because(e))?;
            vcpus.iter().try_for_each(|vcpu| vcpu.init_pmu(ppi))?;
        }

        let (serial, line) = serial_port(&vm, &gic)?;
        let mut bus = Bus::new();
        let frame = gic.v2m_frame().map_or(Ok(()), |frame| {
            let MmioRegion { base, size } = frame.region();
            bus.attach(&(base..base + size), Arc::new(MsiFrame::new(frame, Arc::clone(&vm) as _)))
        });
        let attached = frame
            .and_then(|()| bus.attach(&layout::SERIAL, Arc::clone(&serial) as _))
            .and_then(|()| bus.attach(&layout::RTC, Arc::new(RealTimeClock::new())));
        attached.map_err(|e| Error::failure("cannot lay out the devices").because(e))?;

        let mpidrs = vcpus.iter().map(Vcpu::mpidr).collect::<Result<Vec<_>>>()?;
        let tree = fdt::Machine {
            memory: config.memory.0,
            mpidrs: &mpidrs,
            cmdline: &config.cmdline,
            initrd: initrd.as_ref().map(|initrd| placement.initrd..placement.initrd + initrd.len()),
            gic: gic.layout(),
            serial: layout::serial_spi().map_err(|e| Error::failure("no serial interrupt").because(e))?,
            pmu: if features.pmu { layout::pmu_ppi().ok() } else { None },
            seed: seed(),
        };
        let entry = load(config, &memory, &mut kernel, initrd, &placement, &tree)?;
        if let Some(first) = vcpus.first() {
            first.set_boot_registers(entry, placement.fdt)?;
        }
        tracing::info!("{} vCPUs, {} of memory, {:?}", config.cpus, config.memory, gic.config());
        let parts = Parts {
            bus: Arc::new(bus),
            serial,
            line,
            gic,
            features,
            _memory: memory,
            returns: Arc::new(AtomicU64::new(0)),
            config: config.clone(),
        };
        Ok(Self { vcpus, parts })
    }

    /// Runs the guest until something ends it. `unchecked` is an initial RAM disk that is still to be checked.
    fn run(self, signals: Taken, unchecked: Option<PathBuf>) -> Result<Outcome> {
        let Self { vcpus, parts } = self;
        let verdict = Verdict::new()?;
        let resample =
            ResampleSubscriber::new(parts.line.resampler_for(Arc::clone(&parts.serial) as _), |trouble| {
                tracing::error!("the serial port's interrupt: {trouble:?}");
            });
        let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new_with_capacity(8)
            .map_err(|e| Error::host("cannot make the event loop").because(e))?;
        let running = vcpus
            .into_iter()
            .map(|vcpu| {
                let verdict = verdict.clone();
                vcpu.spawn(Arc::clone(&parts.bus), Arc::clone(&parts.returns), move |ending| match ending {
                    Ending::PowerOff => verdict.set(Outcome::PowerOff),
                    Ending::Reset => verdict.set(Outcome::Reset),
                    Ending::Failed(e) => verdict.set(Outcome::Failed(e)),
                    Ending::Stopped => {}
                })
            })
            .collect::<Result<Vec<_>>>();
        let running = Running(running?);
        events.add_subscriber(Box::new(Wake(verdict.clone())));
        events.add_subscriber(Box::new(Signals { taken: signals, verdict: verdict.clone() }));
        events.add_subscriber(Box::new(resample));
        events.add_subscriber(Box::new(Console::new(Arc::clone(&parts.serial), verdict.clone())));
        if let Some(path) = unchecked {
            check_beside_the_guest(path, verdict.clone());
        }
        let outcome = event_loop(&mut events, &verdict, &parts.returns);
        if let Outcome::Signal(number) = outcome {
            // Whoever sent it wants us gone, even if a vCPU is stuck in a write that nobody reads: nothing is waited for, and
            // the kernel takes everything back.
            terminal::restore();
            std::process::exit(i32::from(signals::exit_code(number)));
        }
        drop(running);
        if parts.config.report {
            terminal::restore();
            // Whoever does not read it any more changes nothing about the run.
            let _ = write!(io::stderr(), "{}", parts.report());
        }
        Ok(outcome)
    }
}

/// Dispatches events until there is an outcome.
///
/// When guest and loop have been quiet for a while, what start and boot took of the host's memory and nobody needs any more is given back, once.
fn event_loop(
    events: &mut EventManager<Box<dyn MutEventSubscriber>>,
    verdict: &Verdict,
    returns: &AtomicU64,
) -> Outcome {
    /// Milliseconds without an event or an exit that count as quiet.
    const QUIET: i32 = 1000;
    let mut settled = false;
    let mut seen = None;
    loop {
        if let Some(outcome) = verdict.take() {
            return outcome;
        }
        match events.run_with_timeout(if settled { -1 } else { QUIET }) {
            Ok(0) if !settled => {
                let now = returns.load(Ordering::Relaxed);
                if seen.replace(now) == Some(now) {
                    sys::give_back_startup_memory();
                    settled = true;
                }
            }
            Ok(_) => {}
            Err(e) => return Outcome::Failed(Error::failure("the event loop failed").because(e)),
        }
    }
}

/// All vCPUs of a running machine. Dropping it stops them together.
struct Running(Vec<RunningVcpu>);

impl Drop for Running {
    fn drop(&mut self) {
        // All are asked before the first is waited for.
        self.0.iter().for_each(RunningVcpu::ask_to_stop);
    }
}

/// Makes the serial port, and connects its line: SPI → irqfd with resamplefd → the route that the kernel made for that pin.
fn serial_port(vm: &Arc<KvmVm>, gic: &InitializedVgic) -> Result<(Arc<SerialPort>, LevelTrigger)> {
    let failed = || Error::failure("cannot connect the serial port's interrupt");
    let spi = layout::serial_spi().map_err(|e| failed().because(e))?;
    let router = Router::new(Arc::clone(vm) as _, &**vm, gic.ready(), &models::ARM_GIC)
        .map_err(|e| failed().because(e))?;
    let gsi = router.claim_spi(spi).map_err(|e| failed().because(e))?;
    let wiring = Wiring::new(Arc::clone(vm) as _, router).map_err(|e| failed().because(e))?;
    let trigger = LevelTrigger::new().map_err(|e| failed().because(e))?;
    trigger.wire(&wiring, &Arc::new(gsi)).map_err(|e| failed().because(e))?;
    let port = SerialPort::new(trigger.line(), Box::new(Stdout(std::io::stdout())))
        .map_err(|e| Error::host("cannot create the serial port").because(e))?;
    Ok((Arc::new(port), trigger))
}

impl Parts {
    fn report(&self) -> Report {
        Report {
            gic: *self.gic.config(),
            vcpus: self.config.cpus,
            memory: self.config.memory,
            features: self.features.names(),
            serial_line: self
                .line
                .state()
                .map_or((0, 0), |state| (state.raised + state.raised_again, state.resampled)),
            bus: self.bus.counts(),
            serial: self.serial.counts(),
            returns: self.returns.load(Ordering::Relaxed),
        }
    }
}
