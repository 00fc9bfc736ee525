// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user adds to a device's node: a compiled device-tree overlay.
//!
//! The format is that of the Devicetree Specification 0.4, chapter 5; fragments, `__fixups__` and `__local_fixups__` are dtc's (its
//! `Documentation/dt-object-internal.txt`). A fragment's target is not looked at: there is one node that an overlay can be for.

use std::collections::BTreeSet;

use vm_fdt::FdtWriter;

use super::node::is_property_name;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Nodes within nodes that are believed.
const MAX_DEPTH: usize = 16;
/// Nodes that are believed.
const MAX_NODES: usize = 1024;
/// dtc counts an overlay's own phandles from 1.
const MAX_PHANDLE: u32 = 0xffff;

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OverlayError {
    /// It is no flattened device tree, or a damaged one.
    #[error("it is no device-tree blob: {0}")]
    Blob(&'static str),
    /// There is nothing to add in it.
    #[error("it has no fragment with an __overlay__ node")]
    NoFragment,
    /// It refers to a node that is not its own. The guest's tree has no labels.
    #[error("it refers to the label '{0}', which is not in it")]
    External(String),
    /// Where the device is and whom it interrupts is not the user's to say.
    #[error("it sets '{0}', which is made for the guest")]
    Ours(String),
}

/// Properties and nodes to be added to a device's node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlay {
    pub(super) node: Node,
    /// The highest phandle in it; 0 if there is none.
    pub(super) phandles: u32,
}

/// A node of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) properties: Vec<Property>,
    pub(super) children: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) name: String,
    pub(super) value: Vec<u8>,
    /// Where in `value` phandles of the overlay's own are.
    references: Vec<usize>,
}

impl Overlay {
    /// Reads a blob as `dtc -O dtb` makes it from a source with `/plugin/`.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn parse(blob: &[u8]) -> Result<Self, OverlayError> {
        let mut root = parse(blob)?;
        for property in root.take("__fixups__").into_iter().flat_map(|node| node.properties) {
            // Each is PATH:PROPERTY:OFFSET.
            let places = String::from_utf8_lossy(&property.value).into_owned();
            if !places.split_terminator('\0').all(is_target) {
                return Err(OverlayError::External(property.name));
            }
        }
        let fixups = root.take("__local_fixups__").unwrap_or_default();
        let mut overlay = Self::default();
        for mut fragment in root.children {
            if let Some(fixups) = fixups.children.iter().find(|node| node.name == fragment.name) {
                fragment.refer(fixups)?;
            }
            if let Some(node) = fragment.take("__overlay__") {
                overlay.node.merge(node);
            }
        }
        if overlay.node == Node::default() {
            return Err(OverlayError::NoFragment);
        }
        let mut phandles = BTreeSet::new();
        overlay.node.phandles(&mut phandles)?;
        overlay.node.check(&phandles)?;
        overlay.phandles = phandles.last().copied().unwrap_or(0);
        Ok(overlay)
    }
}

impl Node {
    fn take(&mut self, name: &str) -> Option<Self> {
        let at = self.children.iter().position(|node| node.name == name)?;
        Some(self.children.remove(at))
    }

    pub(super) fn has_child(&self, name: &str) -> bool {
        self.children.iter().any(|node| node.name == name)
    }

    /// Takes over what another node has; what both have is the other's.
    fn merge(&mut self, other: Self) {
        for property in other.properties {
            self.properties.retain(|own| own.name != property.name);
            self.properties.push(property);
        }
        for child in other.children {
            match self.children.iter_mut().find(|own| own.name == child.name) {
                Some(own) => own.merge(child),
                None => self.children.push(child),
            }
        }
    }

    /// Notes which cells are phandles, as a node of the same shape in `__local_fixups__` says.
    fn refer(&mut self, fixups: &Self) -> Result<(), OverlayError> {
        const WRONG: OverlayError = OverlayError::Blob("its __local_fixups__ do not fit it");
        for fixup in &fixups.properties {
            let property =
                self.properties.iter_mut().find(|property| property.name == fixup.name).ok_or(WRONG)?;
            let (offsets, rest) = fixup.value.as_chunks();
            if !rest.is_empty() {
                return Err(WRONG);
            }
            for offset in offsets {
                property.references.push(usize::try_from(u32::from_be_bytes(*offset)).map_err(|_| WRONG)?);
            }
        }
        for fixups in &fixups.children {
            self.children.iter_mut().find(|node| node.name == fixups.name).ok_or(WRONG)?.refer(fixups)?;
        }
        Ok(())
    }

    fn phandles(&self, seen: &mut BTreeSet<u32>) -> Result<(), OverlayError> {
        if let Some(property) = self.properties.iter().find(|property| property.name == "phandle") {
            let phandle = property.cell(0).unwrap_or(0);
            if !(1..=MAX_PHANDLE).contains(&phandle) || !seen.insert(phandle) {
                return Err(OverlayError::Blob("its phandles are not its own"));
            }
        }
        self.children.iter().try_for_each(|child| child.phandles(seen))
    }

    /// Whether all of it can be written: names as they have to be, references to nodes of its own.
    fn check(&self, phandles: &BTreeSet<u32>) -> Result<(), OverlayError> {
        for property in &self.properties {
            if !is_property_name(&property.name) {
                return Err(OverlayError::Blob("a property's name is none"));
            }
            for &at in &property.references {
                if !property.cell(at).is_some_and(|phandle| phandles.contains(&phandle)) {
                    return Err(OverlayError::Blob("it refers to a node that is not there"));
                }
            }
        }
        for child in &self.children {
            let (name, unit) = child.name.split_once('@').unwrap_or((&child.name, "0"));
            let fits = |c: u8| c.is_ascii_alphanumeric() || b",._+-".contains(&c);
            // Letters first: dtc's own nodes begin otherwise.
            let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
            let named = letter && name.len() <= 31 && name.bytes().all(fits);
            if !named || unit.is_empty() || !unit.bytes().all(fits) {
                return Err(OverlayError::Blob("a node's name is none"));
            }
            child.check(phandles)?;
        }
        Ok(())
    }

    /// Writes what is in it into the node that is open. `base` is what the overlay's phandle 1 becomes.
    pub(super) fn write(&self, fdt: &mut FdtWriter, base: u32) -> Result<(), vm_fdt::Error> {
        let moved = |phandle: u32| phandle.saturating_sub(1).saturating_add(base);
        for property in &self.properties {
            if property.name == "phandle" {
                fdt.property_phandle(moved(property.cell(0).unwrap_or(0)))?;
                continue;
            }
            let mut value = property.value.clone();
            for &at in &property.references {
                if let (Some(phandle), Some(cell)) = (property.cell(at), value.get_mut(at..at + 4)) {
                    cell.copy_from_slice(&moved(phandle).to_be_bytes());
                }
            }
            fdt.property(&property.name, &value)?;
        }
        for child in &self.children {
            let node = fdt.begin_node(&child.name)?;
            child.write(fdt, base)?;
            fdt.end_node(node)?;
        }
        Ok(())
    }
}

impl Property {
    fn cell(&self, at: usize) -> Option<u32> {
        let bytes = self.value.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    }
}

/// Whether this place in `__fixups__` is a fragment's target, and not a property of that name in a node within.
fn is_target(place: &str) -> bool {
    let mut parts = place.split(':');
    let path = parts.next().and_then(|path| path.strip_prefix('/'));
    path.is_some_and(|path| !path.contains('/')) && parts.next() == Some("target")
}

/// The root of a flattened tree.
pub(super) fn parse(blob: &[u8]) -> Result<Node, OverlayError> {
    let wrong = OverlayError::Blob;
    let header = |at: usize| cell(blob, at).ok_or(wrong("it is too short"));
    if header(0)? != MAGIC {
        return Err(wrong("it does not begin like one"));
    }
    let offset = |at: usize| Ok(usize::try_from(header(at)?).unwrap_or(usize::MAX));
    let total = offset(4)?;
    let blob = blob.get(..total).ok_or(wrong("it ends too early"))?;
    // Version 16 is the last change of what is read here.
    if header(20)? < 16 || header(24)? > 17 {
        return Err(wrong("it is of another version"));
    }
    let strings = blob.get(offset(12)?..).ok_or(wrong("its strings are outside of it"))?;
    let tokens = blob.get(offset(8)?..).ok_or(wrong("its structure is outside of it"))?;

    let mut at = 0;
    let mut nodes = 0;
    let mut open: Vec<Node> = Vec::new();
    loop {
        let token = cell(tokens, at).ok_or(wrong("it ends too early"))?;
        at += 4;
        match token {
            NOP => {}
            BEGIN_NODE => {
                let name = text(tokens, at)?;
                at += (name.len() + 1).next_multiple_of(4);
                nodes += 1;
                if open.len() >= MAX_DEPTH || nodes > MAX_NODES {
                    return Err(wrong("it has too many nodes"));
                }
                open.push(Node { name: name.to_owned(), ..Node::default() });
            }
            PROP => {
                let node = open.last_mut().ok_or(wrong("it has a property outside of its nodes"))?;
                let size = |at| Some(usize::try_from(cell(tokens, at)?).unwrap_or(usize::MAX));
                let (len, name) = size(at).zip(size(at + 4)).ok_or(wrong("it ends too early"))?;
                at += 8;
                let end = at.checked_add(len).ok_or(wrong("it ends too early"))?;
                let value = tokens.get(at..end).ok_or(wrong("it ends too early"))?.to_vec();
                let name = text(strings, name)?.to_owned();
                at = end.next_multiple_of(4);
                node.properties.retain(|property| property.name != name);
                node.properties.push(Property { name, value, references: Vec::new() });
            }
            END_NODE => {
                let node = open.pop().ok_or(wrong("it ends a node that never began"))?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(node),
                    None => return Ok(node),
                }
            }
            END => return Err(wrong("it ends within a node")),
            _ => return Err(wrong("it has an unknown token")),
        }
    }
}

fn cell(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn text(bytes: &[u8], at: usize) -> Result<&str, OverlayError> {
    let wrong = OverlayError::Blob("a name in it is none");
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(end) = rest.iter().position(|&byte| byte == 0) else { return Err(wrong) };
    std::str::from_utf8(rest.get(..end).unwrap_or_default()).map_err(|_| wrong)
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
pub(super) mod tests;
