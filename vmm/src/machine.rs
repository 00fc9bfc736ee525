// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: everything put together in the order that the kernel wants, and taken apart in reverse.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use irqfd::{LevelTrigger, Resample, ResampleSubscriber};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Kvm, VmFd};
use kvm_irqchip::KvmVm;
use vgic::{GicLayout, GicPhandles, InitializedVgic, MmioRegion, Vgic};
use virtio_devices::BalloonHandle;
use vm_fdt::FdtWriter;
use vm_memory::GuestMemoryBackend;

use crate::boot;
use crate::bus::Bus;
use crate::config::{Config, OnReset};
use crate::console::{Console, Keyboard};
use crate::control::Control;
use crate::devices::Pluggable;
use crate::error::{Error, Result};
use crate::gpio::Gpio;
use crate::host::{create_vm, gic_request, open_kvm};
use crate::hotplug::HotPlug;
use crate::irq::History;
use crate::kernel::{Initrd, Kernel};
use crate::layout;
use crate::lines::Lines;
use crate::live::Live;
use crate::load::{check_beside_the_guest, load, seed};
use crate::outcome::{Outcome, Verdict};
use crate::pause::Pause;
use crate::pci_host::{Connections, PciHost};
use crate::platform::PlatformDevices;
use crate::power::Signals;
use crate::report::Report;
use crate::rtc::RealTimeClock;
use crate::serial::{SerialPort, Stdout, Ticks};
use crate::signals::{self, Taken, Wake};
use crate::status::Status;
use crate::sys::{self, CollectedWrites, DeviceSlots, VmMemory};
use crate::terminal::{self, RawTerminal};
use crate::v2m::MsiFrame;
use crate::vcpu::{self, Ending, Features, RunningVcpu, Vcpu};
use crate::vfio::Passthrough;
use crate::vfio_config::Vfio;
use crate::vfio_pci::VfioDevices;
use crate::{fdt, memory, virtio};

/// Runs a guest to its end, as often as it resets itself.
pub(crate) fn run_guest(config: &Config, kernel: Kernel, initrd: Option<Initrd>) -> Result<u8> {
    let kvm = open_kvm()?;
    vcpu::register_kick()?;
    // Before the terminal is set, which a signal would leave as it is then, and before there are other threads.
    let signals = Taken::new()?;
    let terminal = RawTerminal::enter().map_err(|e| Error::failure("cannot set the terminal").because(e))?;
    let control = config.control.as_deref().map(Control::listen).transpose()?;
    let mut files = Some((kernel, initrd));
    let mut config = config.clone();
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
        let machine = Machine::build(&config, &kvm, kernel, initrd)?;
        let (outcome, kept) = machine.run(signals.clone(), unchecked, control.as_ref())?;
        // What has come or gone while the guest ran stays so, as devices in a rack would.
        config.vfio = kept.vfio;
        (config.devices.disks, config.devices.nets) = (Vec::new(), Vec::new());
        for device in kept.devices {
            match device {
                Pluggable::Disk(disk) => config.devices.disks.push(disk),
                Pluggable::Net(net) => config.devices.nets.push(net),
            }
        }
        config.balloon_target = kept.balloon_target;
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

/// What a guest that resets itself finds as it was, though it was changed while the guest ran.
struct Kept {
    vfio: Vec<Vfio>,
    devices: Vec<Pluggable>,
    balloon_target: u64,
}

/// A machine that is ready to run. Fields are dropped in this order: what uses comes before what is used.
struct Machine {
    vcpus: Vec<Vcpu>,
    parts: Parts,
}

/// What stays put while the vCPUs run.
pub(crate) struct Parts {
    pub(crate) bus: Arc<Bus>,
    pub(crate) serial: Arc<SerialPort>,
    /// Where the guest's input goes if not to the serial port.
    keyboard: Option<OwnedFd>,
    pub(crate) gpio: Arc<Gpio>,
    /// The level lines of the devices in this process, the serial port's first.
    pub(crate) levels: Vec<Level>,
    pub(crate) pci: Option<PciHost>,
    /// A hand on the balloon, if there is one.
    pub(crate) balloon: Option<BalloonHandle>,
    /// PCI devices of the host's.
    pub(crate) vfio: VfioDevices,
    /// Platform devices of the host's. Before the routing table, which their interrupts need, and the memory, which they may reach.
    pub(crate) platform: PlatformDevices,
    /// Where further devices of the host's come from.
    pub(crate) passthrough: Passthrough,
    /// The routing table, which what is wired needs.
    pub(crate) lines: Lines,
    pub(crate) gic: InitializedVgic,
    features: Features,
    pub(crate) config: Config,
    pub(crate) memory: VmMemory,
    /// The VM itself; the kernel's debugfs knows it by its descriptor's number.
    pub(crate) vm: Arc<VmFd>,
    /// What looks at the interrupts so far have seen.
    pub(crate) history: History,
    pub(crate) returns: Arc<AtomicU64>,
    pub(crate) started: Instant,
}

/// A device with a level line that the event loop raises again after the guest's EOI.
pub(crate) struct Level {
    pub(crate) name: &'static str,
    pub(crate) trigger: LevelTrigger,
    device: Arc<dyn Resample>,
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
        let _span = tracing::info_span!("build").entered();
        let placement = boot::place(
            kernel.text_offset(),
            kernel.image_size(),
            initrd.as_ref().map_or(0, Initrd::len),
            config.memory,
        )?;
        let virtio::Opened { devices, keyboard, balloon } = virtio::open(config)?;
        let (vm_fd, bits) = create_vm(kvm, config)?;
        let vm_fd = Arc::new(vm_fd);
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

        let lines = Lines::new(&vm, &gic)?;
        let (serial, serial_level) = serial_port(&lines)?;
        let (gpio, gpio_level) = power_button(&lines)?;
        let mut bus = Bus::timed(config.metrics.is_some() || config.control.is_some());
        let frame = gic.v2m_frame().map_or(Ok(()), |frame| {
            let MmioRegion { base, size } = frame.region();
            bus.attach(&(base..base + size), Arc::new(MsiFrame::new(frame, Arc::clone(&vm) as _)))
        });
        let attached = frame
            .and_then(|()| bus.attach(&layout::SERIAL, Arc::clone(&serial) as _))
            .and_then(|()| bus.attach(&layout::RTC, Arc::new(RealTimeClock::new())))
            .and_then(|()| bus.attach(&layout::GPIO, Arc::clone(&gpio) as _));
        attached.map_err(|e| Error::failure("cannot lay out the devices").because(e))?;

        let slots = DeviceSlots::new(
            Arc::clone(&vm_fd),
            u32::try_from(memory.memory().num_regions()).unwrap_or(u32::MAX),
        );
        let passthrough = Passthrough::new(memory.memory(), Arc::new(slots));
        let platform = PlatformDevices::build(&config.platform, &passthrough, &lines, &mut bus)?;

        let pci = config.wants_pci().then(|| -> Result<(PciHost, VfioDevices)> {
            let connections = Connections {
                memory: memory.memory().clone(),
                ioevents: Arc::clone(&vm) as _,
                messages: !gic.layout().its_frames().is_empty() || gic.v2m_frame().is_some(),
            };
            let mut pci = PciHost::new(config.memory.0, bits, &lines, connections)?;
            pci.add_virtio(devices, &lines)?;
            let vfio = VfioDevices::build(&config.vfio, &passthrough, &lines, &mut pci)?;
            for _ in pci.slots().len()..config.pci_slots.into() {
                pci.add_slot(&lines)?;
            }
            pci.attach(&mut bus)?;
            Ok((pci, vfio))
        });
        let (pci, vfio) = pci.transpose()?.unzip();
        let vfio = vfio.unwrap_or_default();

        let mpidrs = vcpus.iter().map(Vcpu::mpidr).collect::<Result<Vec<_>>>()?;
        let pci_node = pci.as_ref().map(|pci| {
            |fdt: &mut FdtWriter, phandles: &GicPhandles| pci.write_fdt(fdt, gic.layout(), phandles)
        });
        let tree = fdt::Machine {
            pci: pci_node.as_ref().map(|node| node as _),
            memory: config.memory.0,
            mpidrs: &mpidrs,
            cmdline: &config.cmdline,
            initrd: initrd.as_ref().map(|initrd| placement.initrd..placement.initrd + initrd.len()),
            gic: gic.layout(),
            serial: layout::serial_spi().map_err(|e| Error::failure("no serial interrupt").because(e))?,
            gpio: layout::gpio_spi().map_err(|e| Error::failure("no power button interrupt").because(e))?,
            platform: &platform.nodes(),
            pmu: if features.pmu { layout::pmu_ppi().ok() } else { None },
            seed: seed(),
        };
        let entry = load(config, &memory, &mut kernel, initrd, &placement, &tree)?;
        if let Some(first) = vcpus.first() {
            first.set_boot_registers(entry, placement.fdt)?;
        }
        tracing::info!("{} vCPUs, {} of memory, {:?}", config.cpus, config.memory, gic.config());
        let started = Instant::now();
        let parts = Parts {
            bus: Arc::new(bus),
            serial,
            keyboard,
            gpio,
            levels: vec![serial_level, gpio_level],
            pci,
            balloon,
            vfio,
            platform,
            passthrough,
            lines,
            gic,
            features,
            memory,
            vm: vm_fd,
            history: History::new(started),
            returns: Arc::new(AtomicU64::new(0)),
            config: config.clone(),
            started,
        };
        Ok(Self { vcpus, parts })
    }

    /// Runs the guest until something ends it. `unchecked` is an initial RAM disk that is still to be checked. Returns how it ended, and what it has been given
    /// by then.
    fn run(
        self,
        signals: Taken,
        unchecked: Option<PathBuf>,
        control: Option<&Control>,
    ) -> Result<(Outcome, Kept)> {
        let Self { vcpus, mut parts } = self;
        let keyboard = parts.keyboard.take();
        let parts = Arc::new(parts);
        let pause = Arc::new(Pause::default());
        let verdict = Verdict::new()?;
        let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new_with_capacity(8)
            .map_err(|e| Error::host("cannot make the event loop").because(e))?;
        let running = vcpus
            .into_iter()
            .map(|vcpu| {
                let verdict = verdict.clone();
                let ended = move |ending| match ending {
                    Ending::PowerOff => verdict.set(Outcome::PowerOff),
                    Ending::Reset => verdict.set(Outcome::Reset),
                    Ending::Failed(e) => verdict.set(Outcome::Failed(e)),
                    Ending::Stopped => {}
                };
                let returns = Arc::clone(&parts.returns);
                vcpu.spawn(Arc::clone(&parts.bus), returns, Arc::clone(&pause), ended)
            })
            .collect::<Result<Vec<_>>>();
        let running = Arc::new(Running { vcpus: running?, pause });
        events.add_subscriber(Box::new(Wake(verdict.clone())));
        let patience = Duration::from_secs(parts.config.patience.into());
        let signals = Signals::new(signals, verdict.clone(), Arc::clone(&parts.gpio), patience)
            .map_err(|e| Error::host("cannot wait for signals").because(e))?;
        let power = signals.request();
        events.add_subscriber(Box::new(signals));
        for &Level { name, ref trigger, ref device } in &parts.levels {
            let resampler = trigger.resampler_for(Arc::clone(device));
            events.add_subscriber(Box::new(ResampleSubscriber::new(resampler, move |trouble| {
                tracing::error!("the interrupt of the {name}: {trouble:?}");
            })));
        }
        if let Some(first) = running.vcpus.first() {
            let writes =
                CollectedWrites::new(Arc::clone(&parts.vm), Arc::clone(first.pages()), layout::SERIAL.start);
            let ticks = Ticks::new(Arc::clone(&parts.serial), Box::new(writes));
            let ticks =
                ticks.map_err(|e| Error::host("cannot have a timer for the serial port").because(e))?;
            events.add_subscriber(Box::new(ticks));
        }
        let keyboard = match keyboard {
            Some(pipe) => Keyboard::Pipe(pipe),
            None => Keyboard::Serial(Arc::clone(&parts.serial)),
        };
        events.add_subscriber(Box::new(Console::new(keyboard, verdict.clone())));
        let hotplug = HotPlug::new(&parts, events.remote_endpoint(), verdict.clone());
        if let Some(pci) = &parts.pci {
            for assigned in parts.vfio.lock().iter_mut() {
                for subscriber in assigned.subscribers(&verdict, pci.bridge())? {
                    assigned.subscribers.push(events.add_subscriber(subscriber));
                }
            }
            for virtio in pci.virtio().iter_mut() {
                virtio.subscribers.push(events.add_subscriber(Box::new(virtio.resampler())));
            }
        }
        for subscriber in parts.pci.iter().flat_map(PciHost::resamplers) {
            events.add_subscriber(Box::new(subscriber));
        }
        for subscriber in parts.platform.resamplers() {
            events.add_subscriber(Box::new(subscriber));
        }
        if let Some(path) = unchecked {
            check_beside_the_guest(path, verdict.clone());
        }
        let attached = control.map(|control| {
            control.attach(Box::new(Live {
                parts: Arc::clone(&parts),
                running: Arc::clone(&running),
                hotplug: Arc::clone(&hotplug),
                verdict: verdict.clone(),
                power,
            }))
        });
        let outcome = event_loop(&mut events, &verdict, &parts.returns);
        let at_once = match outcome {
            Outcome::Signal(number) => Some(signals::exit_code(number)),
            Outcome::UserQuit if parts.serial.waits_for_reader() => Some(Status::UserQuit.code()),
            _ => None,
        };
        if let Some(status) = at_once {
            if let Some(control) = control {
                control.remove_socket();
            }
            write_metrics_in_time(&parts);
            parts.serial.finish(false);
            // Whoever asked for it wants us gone, even if a vCPU is stuck in a write that nobody reads: nothing is waited for, and
            // the kernel takes everything back.
            terminal::restore();
            std::process::exit(i32::from(status));
        }
        // Nobody waits for the loop or for a vCPU any more; then nobody asks for anything, and then nothing changes.
        drop(events);
        running.pause.end();
        drop(attached);
        drop(running);
        parts.serial.finish(true);
        hotplug.finish();
        if let Some(path) = &parts.config.metrics {
            parts.write_metrics(path);
        }
        if parts.config.report {
            terminal::restore();
            // Whoever does not read it any more changes nothing about the run.
            let _ = write!(io::stderr(), "{}", parts.report());
        }
        let balloon_target = parts.balloon.as_ref().map_or(0, BalloonHandle::target);
        let devices = parts.pci.as_ref().map_or_else(Vec::new, PciHost::wanted);
        Ok((outcome, Kept { vfio: parts.vfio.wanted(), devices, balloon_target }))
    }
}

/// Dispatches events until there is an outcome.
///
/// When guest and loop have been quiet for a while, what start and boot took of the host's memory and nobody needs any more is given back. A guest that takes long to
/// boot may be quiet meanwhile: so that is done again after what it says later, a few times.
fn event_loop(
    events: &mut EventManager<Box<dyn MutEventSubscriber>>,
    verdict: &Verdict,
    returns: &AtomicU64,
) -> Outcome {
    /// Milliseconds without an event or an exit that count as quiet.
    const QUIET: i32 = 1000;
    /// How often.
    const TIMES: u32 = 4;
    let mut settled = false;
    let mut times = 0;
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
                    times += 1;
                }
            }
            Ok(_) => settled = times >= TIMES,
            Err(e) => return Outcome::Failed(Error::failure("the event loop failed").because(e)),
        }
    }
}

/// Writes the metrics of a machine that is ended from outside. What they are collected from may be in the hands of a vCPU that is stuck, and is then not waited
/// for long.
fn write_metrics_in_time(parts: &Arc<Parts>) {
    const A_WHILE: Duration = Duration::from_secs(2);
    let Some(path) = parts.config.metrics.clone() else { return };
    let (done, written) = mpsc::channel();
    let parts = Arc::clone(parts);
    let write = move || {
        parts.write_metrics(&path);
        let _ = done.send(());
    };
    if thread::Builder::new().name("metrics".into()).spawn(write).is_ok()
        && written.recv_timeout(A_WHILE).is_err()
    {
        tracing::warn!("the metrics are not written: a device is busy");
    }
}

/// All vCPUs of a running machine. Dropping it stops them together.
pub(crate) struct Running {
    pub(crate) vcpus: Vec<RunningVcpu>,
    pub(crate) pause: Arc<Pause>,
}

impl Running {
    /// Holds all vCPUs still.
    pub(crate) fn pause(&self) -> Result<()> {
        /// A vCPU that writes to a console waits for whoever reads it.
        const PATIENCE: Duration = Duration::from_secs(10);
        let kick = || self.vcpus.iter().for_each(RunningVcpu::kick);
        self.pause.pause(kick, PATIENCE).map_err(|e| {
            Error::failure("the guest cannot be paused")
                .because(e)
                .hint("read what it writes to its consoles")
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.pause.end();
        // All are asked before the first is waited for.
        self.vcpus.iter().for_each(RunningVcpu::ask_to_stop);
    }
}

/// Makes the serial port, and connects its line.
fn serial_port(lines: &Lines) -> Result<(Arc<SerialPort>, Level)> {
    let name = "serial port";
    let spi = layout::serial_spi().map_err(|e| Error::failure("no serial interrupt").because(e))?;
    let trigger = lines.level(name, &lines.claim(name, spi)?)?;
    let port = SerialPort::new(trigger.line(), Box::new(Stdout(std::io::stdout())))
        .map_err(|e| Error::host("cannot create the serial port").because(e))?;
    let port = Arc::new(port);
    Ok((Arc::clone(&port), Level { name, trigger, device: port }))
}

/// Makes the power button's GPIO controller, and connects its line.
fn power_button(lines: &Lines) -> Result<(Arc<Gpio>, Level)> {
    let name = "power button";
    let spi = layout::gpio_spi().map_err(|e| Error::failure("no power button interrupt").because(e))?;
    let trigger = lines.level(name, &lines.claim(name, spi)?)?;
    let gpio = Arc::new(Gpio::new(trigger.line()));
    Ok((Arc::clone(&gpio), Level { name, trigger, device: gpio }))
}

impl Parts {
    fn report(&self) -> Report {
        Report {
            gic: *self.gic.config(),
            vcpus: self.config.cpus,
            memory: self.config.memory,
            features: self.features.names(),
            serial_line: self
                .levels
                .first()
                .and_then(|level| level.trigger.state().ok())
                .map_or((0, 0), |state| (state.raised + state.raised_again, state.resampled)),
            devices: self
                .pci
                .iter()
                .flat_map(PciHost::report)
                .chain(self.vfio.report(self.pci.as_ref().map(PciHost::bridge)))
                .collect(),
            bus: self.bus.counts(),
            serial: self.serial.counts(),
            returns: self.returns.load(Ordering::Relaxed),
        }
    }
}
