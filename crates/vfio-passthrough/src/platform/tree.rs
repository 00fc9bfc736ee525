// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's device tree, as it is in sysfs: a directory a node, a file a property.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::host::Sysfs;

/// Bytes of a property that are believed; the largest in practice are blobs of a few KiB.
const MAX_PROPERTY: u64 = 64 << 10;
/// Properties of a node that are believed.
const MAX_PROPERTIES: usize = 512;
/// Nodes that are searched for a phandle.
const MAX_NODES: usize = 100_000;

/// A node of the host's device tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostNode {
    /// Its name, unit address included.
    pub name: String,
    /// Its properties.
    pub properties: BTreeMap<String, Vec<u8>>,
    /// The names of its children.
    pub children: Vec<String>,
}

impl HostNode {
    /// Reads a node's directory.
    ///
    /// # Errors
    /// The kernel's; or the node is larger than any real one.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut node = Self { name, ..Self::default() };
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                node.children.push(name);
            } else {
                node.properties.insert(name, property(&entry.path())?);
            }
            if node.properties.len() + node.children.len() > MAX_PROPERTIES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many properties"));
            }
        }
        node.children.sort();
        Ok(node)
    }

    /// A property's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.properties.get(name).map(Vec::as_slice)
    }

    /// A property of one 32-bit cell.
    #[must_use]
    pub fn cell(&self, name: &str) -> Option<u32> {
        self.get(name)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A property that is a list of 32-bit cells.
    #[must_use]
    pub fn cells(&self, name: &str) -> Option<Vec<u32>> {
        let (cells, rest) = self.get(name)?.as_chunks();
        rest.is_empty().then(|| cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect())
    }

    /// A property that is a list of strings.
    #[must_use]
    pub fn strings(&self, name: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(self.get(name).unwrap_or_default());
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    /// The property that says that the device reads and writes memory by itself, if there is one.
    #[must_use]
    pub fn dma(&self) -> Option<&'static str> {
        const MASTERS: [&str; 4] = ["dma-coherent", "dma-noncoherent", "dma-ranges", "iommus"];
        MASTERS.into_iter().find(|property| self.get(property).is_some())
    }

    /// Whether it is compatible with `what`.
    #[must_use]
    pub fn is_compatible(&self, what: &str) -> bool {
        self.strings("compatible").iter().any(|compatible| compatible == what)
    }
}

fn property(path: &Path) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    fs::File::open(path)?.take(MAX_PROPERTY + 1).read_to_end(&mut value)?;
    if value.len() as u64 > MAX_PROPERTY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a property is too long"));
    }
    Ok(value)
}

/// The host's whole tree.
#[derive(Debug, Clone)]
pub struct HostTree {
    root: PathBuf,
}

impl HostTree {
    /// The one in sysfs.
    #[must_use]
    pub fn new(sysfs: &Sysfs) -> Self {
        Self { root: sysfs.root().join("firmware/devicetree/base") }
    }

    /// The node that has this phandle.
    #[must_use]
    pub fn by_phandle(&self, phandle: u32) -> Option<HostNode> {
        let mut pending = vec![self.root.clone()];
        let mut seen = 0;
        while let Some(directory) = pending.pop() {
            seen += 1;
            if seen > MAX_NODES {
                return None;
            }
            if fs::read(directory.join("phandle")).is_ok_and(|value| value == phandle.to_be_bytes()) {
                return HostNode::read(&directory).ok();
            }
            let entries = fs::read_dir(&directory).ok().into_iter().flatten().filter_map(Result::ok);
            pending.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_node_is_believed_up_to_a_size() {
        let directory = TempDir::new().unwrap();
        let node = directory.as_path();
        let largest = vec![7; usize::try_from(MAX_PROPERTY).unwrap()];
        fs::write(node.join("p0"), &largest).unwrap();
        // In the reverse of their order, and half of them nodes.
        for n in (1..MAX_PROPERTIES).rev() {
            match n % 2 {
                0 => fs::write(node.join(format!("p{n}")), b"").unwrap(),
                _ => fs::create_dir(node.join(format!("n{n:03}"))).unwrap(),
            }
        }
        let read = HostNode::read(node).unwrap();
        assert_eq!(read.get("p0"), Some(largest.as_slice()));
        assert_eq!(read.properties.len() + read.children.len(), MAX_PROPERTIES);
        assert!(read.children.is_sorted());
        let refused = || HostNode::read(node).unwrap_err().to_string();
        fs::write(node.join("one-more"), b"").unwrap();
        assert_eq!(refused(), "too many properties");
        fs::remove_file(node.join("one-more")).unwrap();
        fs::write(node.join("p0"), [largest.as_slice(), b"7"].concat()).unwrap();
        assert_eq!(refused(), "a property is too long");
    }

    #[test]
    fn a_node_says_what_it_is_compatible_with_and_whether_it_reaches_memory() {
        let mut node = HostNode::default();
        assert_eq!((node.dma(), node.is_compatible("a")), (None, false));
        node.properties.insert("compatible".to_owned(), b"vendor,a\0vendor,b\0".to_vec());
        let compatible = ["vendor,a", "vendor,b", "vendor", "a", ""].map(|what| node.is_compatible(what));
        assert_eq!(compatible, [true, true, false, false, false]);
        for property in ["iommus", "dma-ranges", "dma-noncoherent", "dma-coherent"] {
            let mut node = node.clone();
            node.properties.insert(property.to_owned(), Vec::new());
            assert_eq!(node.dma(), Some(property));
        }
    }
}
