// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which functions there are, where they are, and which of their BARs reach them.
//!
//! A BAR is reached if it lies in a window of the host bridge, if the port above it (when there is one) forwards its addresses, and if no other BAR is there. Of
//! two that overlap, the one that was there first stays; the other one is refused, and tried again whenever something moves. Of several
//! that come at once, the one on the lower bus, device and function is first.

use std::collections::BTreeMap;
use std::sync::Arc;

use irq_types::Bdf;

use super::map::{Map, Placed, Target};
use super::windows::HostConfig;
use super::{BusEvent, Reason, Refusal};
use crate::port::Forwarding;
use crate::{DecodedBar, PciFunction, RootPort, Space};

/// Where a function is plugged in, whatever bus number that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// On the root bus.
    Root(Bdf),
    /// Behind the port, which is on the root bus; device and function in one byte.
    Behind(Bdf, u8),
}

pub(crate) struct Record {
    function: Arc<dyn PciFunction>,
    /// Where the function was last told that it is.
    told: Option<Bdf>,
    /// Where it can be reached.
    bdf: Option<Bdf>,
    /// What decodes, as it last said.
    wanted: Vec<DecodedBar>,
    /// What of that reaches it.
    placed: Vec<DecodedBar>,
}

pub(crate) struct Port {
    pub(crate) port: Arc<RootPort>,
    forwarding: Forwarding,
}

/// All that is plugged in.
#[derive(Default)]
pub(crate) struct Topology {
    pub(crate) functions: BTreeMap<Place, Record>,
    pub(crate) ports: BTreeMap<Bdf, Port>,
    pub(crate) refused: Vec<Refusal>,
    /// The guest may have looked: what comes and goes from now on does so before its eyes.
    pub(crate) live: bool,
}

/// What [`Topology::settle`] is to look at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Touched {
    /// The registers of this function.
    Registers(Bdf),
    /// Anything.
    All,
}

impl Record {
    pub(crate) fn new(function: Arc<dyn PciFunction>) -> Self {
        Self { function, told: None, bdf: None, wanted: Vec::new(), placed: Vec::new() }
    }

    pub(crate) fn function(&self) -> &Arc<dyn PciFunction> {
        &self.function
    }

    pub(crate) fn bdf(&self) -> Option<Bdf> {
        self.bdf
    }

    pub(crate) fn placed(&self) -> &[DecodedBar] {
        &self.placed
    }

    /// Nothing reaches the function any more.
    pub(crate) fn retire(self) -> Arc<dyn PciFunction> {
        if !self.placed.is_empty() {
            self.function.placed(&[]);
        }
        self.function
    }
}

impl Topology {
    /// The functions behind a port, by device and function.
    pub(crate) fn behind(&self, port: Bdf) -> impl Iterator<Item = (u8, &Record)> {
        let range = Place::Behind(port, 0)..=Place::Behind(port, u8::MAX);
        self.functions.range(range).filter_map(|(place, record)| match place {
            Place::Behind(_, function) => Some((*function, record)),
            Place::Root(_) => None,
        })
    }

    pub(crate) fn take_behind(&mut self, port: Bdf) -> Vec<Record> {
        let places: Vec<u8> = self.behind(port).map(|(function, _)| function).collect();
        places.into_iter().filter_map(|at| self.functions.remove(&Place::Behind(port, at))).collect()
    }

    /// Brings everything in line with the registers that may have changed: what ports have to do to the functions behind them, bus numbers, BARs. The
    /// new map, if it is another one; after it is in place, [`notify`](Self::notify) tells the functions.
    pub(crate) fn settle(
        &mut self,
        touched: Touched,
        config: &HostConfig,
        events: &mut Vec<BusEvent>,
    ) -> Change {
        let mut change = Change::default();
        let looked_at: Vec<Bdf> = match touched {
            Touched::All => self.ports.keys().copied().collect(),
            Touched::Registers(bdf) => self.ports.contains_key(&bdf).then_some(bdf).into_iter().collect(),
        };
        for bdf in looked_at {
            change.routes |= self.look_at_port(bdf, events);
        }
        change.routes |= matches!(touched, Touched::All);
        if change.routes {
            self.number();
        }
        let ask = |bdf: Option<Bdf>| match touched {
            Touched::All => true,
            Touched::Registers(touched) => change.routes || bdf == Some(touched),
        };
        for record in self.functions.values_mut().filter(|record| ask(record.bdf)) {
            let wanted = if record.bdf.is_some() { record.function.decoded() } else { Vec::new() };
            change.bars |= wanted != record.wanted;
            record.wanted = wanted;
        }
        if change.bars || change.routes {
            change.told = self.place(config, events);
        }
        change
    }

    /// Does what the guest's write to a port has brought about. Whether the port forwards something else now.
    fn look_at_port(&mut self, bdf: Bdf, events: &mut Vec<BusEvent>) -> bool {
        let Some(entry) = self.ports.get_mut(&bdf) else { return false };
        let due = entry.port.take_due();
        let forwarding = entry.port.forwarding();
        let mut changed = forwarding != entry.forwarding;
        entry.forwarding = forwarding;
        let port = entry.port.clone();
        if due.reset {
            for (_, record) in self.behind(bdf) {
                record.function.reset();
            }
            changed = true;
        }
        if let Some(on) = due.power {
            events.push(BusEvent::SlotPower { port: bdf, on });
        }
        if due.leaves {
            let functions = self.take_behind(bdf).into_iter().map(Record::retire).collect();
            port.extract();
            if let Some(entry) = self.ports.get_mut(&bdf) {
                entry.forwarding = port.forwarding();
            }
            events.push(BusEvent::Removed { port: bdf, functions });
            changed = true;
        }
        changed
    }

    /// Where each function can be reached, and who is told so.
    fn number(&mut self) {
        let mut taken = Vec::new();
        let mut buses: BTreeMap<Bdf, (u8, bool)> = BTreeMap::new();
        for (bdf, entry) in &self.ports {
            // A bus that two ports claim is the first one's.
            if let Some(bus) = entry.forwarding.bus.filter(|bus| !taken.contains(bus)) {
                taken.push(bus);
                buses.insert(*bdf, (bus, entry.forwarding.ari));
            }
        }
        for (place, record) in &mut self.functions {
            record.bdf = match *place {
                Place::Root(bdf) => Some(bdf),
                // Without ARI, the port passes on what is for device 0 and nothing else.
                Place::Behind(port, function) => buses
                    .get(&port)
                    .filter(|(_, ari)| *ari || function < 8)
                    .map(|(bus, _)| Bdf::from_requester_id(u16::from_be_bytes([*bus, function]))),
            };
            if let Some(bdf) = record.bdf
                && record.told != Some(bdf)
            {
                record.function.set_bdf(bdf);
                record.told = Some(bdf);
            }
        }
    }

    /// Why a BAR cannot be where it wants to be, leaving other BARs aside.
    fn admits(&self, config: &HostConfig, place: Place, bar: &DecodedBar) -> Result<(), Reason> {
        if !config.contains(bar) {
            return Err(Reason::OutsideWindows);
        }
        match place {
            Place::Root(_) => Ok(()),
            Place::Behind(port, _) => match self.ports.get(&port) {
                Some(entry) if entry.forwarding.passes(bar) => Ok(()),
                _ => Err(Reason::NotForwarded { port }),
            },
        }
    }

    /// Decides which BARs reach their functions. Who is to be told, and what they keep and what they get.
    fn place(&mut self, config: &HostConfig, events: &mut Vec<BusEvent>) -> Vec<Told> {
        let mut occupied = Occupied::default();
        let mut placed: BTreeMap<Place, Vec<DecodedBar>> = BTreeMap::new();
        let mut waiting = Vec::new();
        let mut refused = Vec::new();
        for (&place, record) in &self.functions {
            let Some(bdf) = record.bdf else { continue };
            for bar in &record.wanted {
                match self.admits(config, place, bar) {
                    Err(reason) => refused.push(Refusal { bdf, bar: *bar, reason }),
                    Ok(()) if record.placed.contains(bar) => {
                        occupied.insert(bar, bdf);
                        placed.entry(place).or_default().push(*bar);
                    }
                    Ok(()) => waiting.push((place, bdf, *bar)),
                }
            }
        }
        for (place, bdf, bar) in waiting {
            match occupied.holder(&bar) {
                Some((by, index)) => {
                    refused.push(Refusal { bdf, bar, reason: Reason::Overlaps { function: by, bar: index } });
                }
                None => {
                    occupied.insert(&bar, bdf);
                    placed.entry(place).or_default().push(bar);
                }
            }
        }
        let mut told = Vec::new();
        for (place, record) in &mut self.functions {
            let mut now = placed.remove(place).unwrap_or_default();
            now.sort_unstable_by_key(|bar| bar.bar);
            let before = std::mem::replace(&mut record.placed, now);
            if before != record.placed {
                let kept =
                    before.iter().filter(|bar| record.placed.contains(bar)).copied().collect::<Vec<_>>();
                let loses = kept.len() != before.len();
                let (function, now) = (record.function.clone(), record.placed.clone());
                told.push(Told { function, kept: loses.then_some(kept), now });
            }
        }
        refused.sort_unstable_by_key(|refusal| (refusal.bdf, refusal.bar.bar));
        let new = refused.iter().filter(|refusal| !self.refused.contains(refusal));
        events.extend(new.cloned().map(BusEvent::Refused));
        self.refused = refused;
        told
    }

    /// The map that accesses look at.
    pub(crate) fn map(&self) -> Map {
        let mut map = Map::default();
        for record in self.functions.values() {
            let Some(bdf) = record.bdf else { continue };
            let target = Target { function: record.function.clone(), multifunction: false };
            map.functions.insert(bdf, target);
            for bar in &record.placed {
                let placed = Placed { size: bar.size, bar: bar.bar, function: record.function.clone() };
                map.ranges_mut(bar.space).insert(bar.base, placed);
            }
        }
        let devices: Vec<Bdf> = map.functions.keys().copied().filter(|bdf| bdf.function() != 0).collect();
        for bdf in devices {
            let first = Bdf::from_requester_id(bdf.requester_id() & !7);
            if let Some(target) = map.functions.get_mut(&first) {
                target.multifunction = true;
            }
        }
        map
    }
}

/// What came of a look.
#[derive(Default)]
pub(crate) struct Change {
    routes: bool,
    bars: bool,
    told: Vec<Told>,
}

struct Told {
    function: Arc<dyn PciFunction>,
    /// What is left of what it had, if it loses anything.
    kept: Option<Vec<DecodedBar>>,
    now: Vec<DecodedBar>,
}

impl Change {
    /// Whether the map is another one.
    pub(crate) fn moves(&self) -> bool {
        self.routes || !self.told.is_empty()
    }

    /// Tells the functions where their BARs are: first those that lose a place, so that whoever gets it finds it free.
    pub(crate) fn notify(self) {
        for told in &self.told {
            if let Some(kept) = &told.kept {
                told.function.placed(kept);
            }
        }
        for told in &self.told {
            if told.kept.as_ref() != Some(&told.now) {
                told.function.placed(&told.now);
            }
        }
    }
}

/// Who is where, while it is being decided.
#[derive(Default)]
struct Occupied {
    memory: BTreeMap<u64, (u64, Bdf, crate::BarIndex)>,
    io: BTreeMap<u64, (u64, Bdf, crate::BarIndex)>,
}

impl Occupied {
    fn of(&self, space: Space) -> &BTreeMap<u64, (u64, Bdf, crate::BarIndex)> {
        match space {
            Space::Memory => &self.memory,
            Space::Io => &self.io,
        }
    }

    fn insert(&mut self, bar: &DecodedBar, bdf: Bdf) {
        let map = match bar.space {
            Space::Memory => &mut self.memory,
            Space::Io => &mut self.io,
        };
        map.insert(bar.base, (bar.size, bdf, bar.bar));
    }

    /// The BAR that has one of this one's addresses. Those that are asked about lie within the windows.
    fn holder(&self, bar: &DecodedBar) -> Option<(Bdf, crate::BarIndex)> {
        let end = bar.base.saturating_add(bar.size);
        let (base, (size, bdf, index)) = self.of(bar.space).range(..end).next_back()?;
        (base.saturating_add(*size) > bar.base).then_some((*bdf, *index))
    }
}

impl Port {
    pub(crate) fn new(port: Arc<RootPort>) -> Self {
        Self { port, forwarding: Forwarding::default() }
    }
}
