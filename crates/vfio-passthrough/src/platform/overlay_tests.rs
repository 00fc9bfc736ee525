// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

/// A flattened tree, which may be wrong in any way.
#[derive(Default)]
pub(in crate::platform) struct Blob {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Blob {
    pub(in crate::platform) fn word(&mut self, word: u32) -> &mut Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    pub(in crate::platform) fn begin(&mut self, name: &str) -> &mut Self {
        self.word(BEGIN_NODE).bytes(&[name.as_bytes(), &[0]].concat());
        self
    }

    pub(in crate::platform) fn prop(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend([name.as_bytes(), &[0]].concat());
        self.word(PROP).word(u32::try_from(value.len()).unwrap()).word(at).bytes(value);
        self
    }

    pub(in crate::platform) fn end(&mut self) -> &mut Self {
        self.word(END_NODE)
    }

    /// So many nodes within each other, and something in the innermost.
    fn nested(&mut self, depth: usize, of: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let innermost = (0..depth).fold(self, |blob, _| blob.begin("b"));
        (0..depth).fold(of(innermost), |blob, _| blob.end())
    }

    /// An overlay as dtc makes it, of one fragment.
    pub(in crate::platform) fn overlay(of: impl FnOnce(&mut Self) -> &mut Self) -> Self {
        let mut blob = Self::default();
        blob.begin("").begin("fragment@0").prop("target-path", b"/\0").begin("__overlay__");
        of(&mut blob);
        blob.end().end();
        blob
    }

    /// Which cells of an overlay are phandles.
    pub(in crate::platform) fn local_fixups(mut self, of: impl FnOnce(&mut Self) -> &mut Self) -> Self {
        self.begin("__local_fixups__").begin("fragment@0").begin("__overlay__");
        of(&mut self);
        self.end().end().end();
        self
    }

    /// Ends the root, and puts the header before it.
    pub(in crate::platform) fn finish(&self) -> Vec<u8> {
        let mut structure = self.structure.clone();
        structure.extend([END_NODE, END].map(u32::to_be_bytes).concat());
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let (strings, total) = (56 + len(&structure), 56 + len(&structure) + len(&self.strings));
        let header = [MAGIC, total, 56, strings, 40, 17, 16, 0, len(&self.strings), len(&structure)];
        let reserved = [0; 16];
        [&header.map(u32::to_be_bytes).concat(), &reserved[..], &structure, &self.strings].concat()
    }

    fn parse(&self) -> Result<Overlay, OverlayError> {
        Overlay::parse(&self.finish())
    }
}

/// What is wrong with an overlay.
fn wrong(blob: &[u8]) -> &'static str {
    match Overlay::parse(blob) {
        Err(OverlayError::Blob(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// An overlay of one property, with what follows its fragment.
fn with(of: impl FnOnce(&mut Blob) -> &mut Blob) -> Blob {
    let mut blob = Blob::overlay(|blob| blob.prop("bus-width", &[0, 0, 0, 8]));
    of(&mut blob);
    blob
}

#[test]
fn fragments_are_one_and_what_two_of_them_have_is_the_later_ones() {
    let mut blob = Blob::overlay(|blob| {
        blob.prop("a", &[1]).prop("b", &[1]).begin("child").prop("c", &[1]).prop("d", &[1]).end()
    });
    blob.word(NOP).begin("fragment@1").word(NOP).begin("__overlay__");
    blob.prop("b", &[3]).prop("b", &[2]).begin("child").prop("d", &[2]).end().begin("new").end();
    blob.end().end().begin("fragment@2").end().begin("__symbols__").prop("x", b"/fragment@0\0").end();
    let node = blob.parse().unwrap().node;
    let values = |node: &Node| {
        let pairs = node.properties.iter().map(|property| (property.name.clone(), property.value[0]));
        pairs.collect::<Vec<_>>()
    };
    assert_eq!(values(&node), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let names: Vec<&str> = node.children.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(names, ["child", "new"]);
    assert_eq!(values(&node.children[0]), [("c".to_owned(), 1), ("d".to_owned(), 2)]);
}

#[test]
fn an_overlay_adds_something_and_refers_to_nobody_elses_nodes() {
    assert_eq!(Blob::overlay(|blob| blob).parse(), Err(OverlayError::NoFragment));
    assert_eq!(Blob::default().begin("").parse(), Err(OverlayError::NoFragment));
    let refers = |places: &[u8]| with(|blob| blob.begin("__fixups__").prop("soc", places).end()).parse();
    assert!(refers(b"/fragment@0:target:0\0/fragment@1:target:0\0").is_ok(), "a target is not looked at");
    let external = Err(OverlayError::External("soc".to_owned()));
    for places in [
        &b"/fragment@0/__overlay__:vmmc-supply:0\0"[..],
        b"/fragment@0:target:0\0/fragment@0/__overlay__:vmmc-supply:0\0",
        // A property of the device's that happens to be called so.
        b"/fragment@0/__overlay__:target:0\0",
        b"/fragment@0\0",
        b"\0",
    ] {
        assert_eq!(refers(places), external, "{}", String::from_utf8_lossy(places));
    }
}

#[test]
fn phandles_are_an_overlays_own_each_once_and_references_lead_to_them() {
    let of = |phandles: &[&[u8]]| {
        Blob::overlay(|blob| {
            for (n, phandle) in phandles.iter().enumerate() {
                blob.begin(&format!("n{n}")).prop("phandle", phandle).end();
            }
            blob
        })
    };
    assert_eq!(of(&[&[0, 0, 0xff, 0xff], &[0, 0, 0, 1]]).parse().unwrap().phandles, 0xffff);
    let not_its_own = "its phandles are not its own";
    for phandles in
        [&[&[0, 0, 0, 0][..]][..], &[&[0, 1, 0, 0]], &[&[0, 0, 1]], &[&[0, 0, 0, 1], &[0, 0, 0, 1]]]
    {
        assert_eq!(wrong(&of(phandles).finish()), not_its_own, "{phandles:?}");
    }
    let refer = |value: &[u8], at: &[u8]| {
        let blob = Blob::overlay(|blob| {
            blob.prop("x-supply", value).begin("x").prop("phandle", &[0, 0, 0, 2]).end()
        });
        blob.local_fixups(|blob| blob.prop("x-supply", at)).finish()
    };
    assert!(Overlay::parse(&refer(&[0, 0, 0, 9, 0, 0, 0, 2], &[0, 0, 0, 4])).is_ok());
    let not_there = "it refers to a node that is not there";
    assert_eq!(wrong(&refer(&[0, 0, 0, 9, 0, 0, 0, 2], &[0, 0, 0, 0])), not_there);
    assert_eq!(wrong(&refer(&[0, 0, 0, 2], &[0, 0, 0, 1])), not_there);
    assert_eq!(wrong(&refer(&[0, 0, 0, 2], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])), not_there);
}

#[test]
fn local_fixups_have_the_shape_of_what_they_are_for() {
    let do_not_fit = |of: fn(&mut Blob) -> &mut Blob| {
        let what = wrong(&Blob::overlay(|blob| blob.prop("a", &[0; 4])).local_fixups(of).finish());
        assert_eq!(what, "its __local_fixups__ do not fit it");
    };
    do_not_fit(|blob| blob.prop("b", &[0; 4]));
    do_not_fit(|blob| blob.prop("a", &[0; 5]));
    do_not_fit(|blob| blob.begin("child").end());
}

#[test]
fn names_are_those_that_a_tree_may_have() {
    let long = "n".repeat(31);
    for (name, fits) in [
        ("a", true),
        ("Z9,._+-@Z9,._+-", true),
        (&long, true),
        (&format!("{long}@{}", "0".repeat(40)), true),
        (&format!("{long}n"), false),
        ("", false),
        ("9a", false),
        ("_a", false),
        ("a#", false),
        ("a@", false),
        ("a@0@1", false),
        ("a@#", false),
        ("\u{e9}", false),
    ] {
        for depth in 1..=2 {
            let blob = Blob::overlay(|blob| {
                blob.prop("a", &[]);
                blob.nested(depth - 1, |blob| blob.begin(name).end())
            });
            match fits {
                true => assert!(blob.parse().is_ok(), "{name:?}"),
                false => assert_eq!(wrong(&blob.finish()), "a node's name is none", "{name:?}"),
            }
        }
    }
    for (name, fits) in
        [("Z9,._+?#-", true), (&long, true), (&format!("{long}n"), false), ("", false), ("a@", false)]
    {
        let blob = Blob::overlay(|blob| blob.prop(name, &[]));
        match fits {
            true => assert!(blob.parse().is_ok(), "{name:?}"),
            false => assert_eq!(wrong(&blob.finish()), "a property's name is none", "{name:?}"),
        }
    }
}

#[test]
fn a_tree_of_wrong_tokens_is_said() {
    let tokens = |of: fn(&mut Blob) -> &mut Blob| {
        let mut blob = Blob::default();
        of(&mut blob);
        wrong(&blob.finish())
    };
    assert_eq!(tokens(|blob| blob), "it ends a node that never began");
    assert_eq!(tokens(|blob| blob.prop("a", &[])), "it has a property outside of its nodes");
    assert_eq!(tokens(|blob| blob.begin("").begin("a")), "it ends within a node");
    for token in [0, 5, 8, 10] {
        let mut blob = Blob::default();
        assert_eq!(wrong(&blob.begin("").word(token).finish()), "it has an unknown token");
    }
    // A length that leaves the blob, one that would wrap, a name that leaves it.
    for (len, name) in [(4000, 0), (u32::MAX, 0)] {
        let blob = with(|blob| blob.word(PROP).word(len).word(name));
        assert_eq!(wrong(&blob.finish()), "it ends too early");
    }
    assert_eq!(wrong(&with(|blob| blob.word(PROP).word(0).word(4000)).finish()), "a name in it is none");
}

#[test]
fn nodes_are_only_so_many_and_so_deep() {
    // Root, fragment and __overlay__ count, too.
    let deep = |depth: usize| Blob::overlay(|blob| blob.nested(depth - 3, |blob| blob));
    assert!(deep(16).parse().is_ok());
    assert_eq!(wrong(&deep(17).finish()), "it has too many nodes");
    let many =
        |nodes| Blob::overlay(|blob| (3..nodes).fold(blob, |blob, n| blob.begin(&format!("a{n}")).end()));
    assert!(many(1024).parse().is_ok());
    assert_eq!(wrong(&many(1025).finish()), "it has too many nodes");
}

#[test]
fn a_blob_has_the_header_of_one_and_no_bytes_panic() {
    let good = with(|blob| blob).finish();
    // (word of the header, value, what is wrong with it)
    for (word, value, what) in [
        (0, 0xd00d_feee, Some("it does not begin like one")),
        (1, 4000, Some("it ends too early")),
        (2, 4000, Some("its structure is outside of it")),
        (3, 4000, Some("its strings are outside of it")),
        (5, 15, Some("it is of another version")),
        (5, 16, None),
        (5, 99, None),
        (6, 17, None),
        (6, 18, Some("it is of another version")),
    ] {
        let mut blob = good.clone();
        blob[4 * word..][..4].copy_from_slice(&u32::to_be_bytes(value));
        match what {
            Some(what) => assert_eq!(wrong(&blob), what, "word {word}"),
            None => assert!(Overlay::parse(&blob).is_ok(), "word {word}"),
        }
    }
    assert_eq!(wrong(b"/dts-v1/;"), "it does not begin like one");
    for len in 0..good.len() {
        assert!(Overlay::parse(&good[..len]).is_err(), "{len} of {} bytes", good.len());
    }
    assert_eq!(Overlay::parse(&[good.as_slice(), b"more"].concat()), Overlay::parse(&good));
    for at in 0..good.len() {
        for byte in [0, 1, 2, 3, 9, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = byte;
            let _ = Overlay::parse(&bad);
        }
    }
}
