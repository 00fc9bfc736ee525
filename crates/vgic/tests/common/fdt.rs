// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A reader of flattened device trees, as far as the tests need one (Devicetree Specification v0.4, chapter 5).

/// A node with everything in it, in the order of the blob.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) properties: Vec<(String, Vec<u8>)>,
    pub(crate) children: Vec<Node>,
}

/// A property of 32-bit cells.
pub(crate) fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// A property of pairs of cells.
pub(crate) fn cells64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;

/// The root node of `blob`.
pub(crate) fn parse(blob: &[u8]) -> Node {
    assert_eq!(word(blob, 0), 0xd00d_feed, "magic");
    let (structure, strings) = (word(blob, 8) as usize, word(blob, 12) as usize);
    let mut reader = Reader { structure: &blob[structure..], strings: &blob[strings..], at: 0 };
    assert_eq!(reader.token(), BEGIN_NODE);
    let root = reader.node();
    assert_eq!(reader.token(), END);
    root
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

struct Reader<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn token(&mut self) -> u32 {
        self.at += 4;
        word(self.structure, self.at - 4)
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes.next_multiple_of(4);
    }

    fn node(&mut self) -> Node {
        let name = string(&self.structure[self.at..]);
        self.skip(name.len() + 1);
        let (mut properties, mut children) = (Vec::new(), Vec::new());
        loop {
            match self.token() {
                BEGIN_NODE => children.push(self.node()),
                END_NODE => return Node { name, properties, children },
                PROP => {
                    let (length, name) = (self.token() as usize, self.token() as usize);
                    let value = self.structure[self.at..self.at + length].to_vec();
                    self.skip(length);
                    properties.push((string(&self.strings[name..]), value));
                }
                token => panic!("token {token}"),
            }
        }
    }
}
