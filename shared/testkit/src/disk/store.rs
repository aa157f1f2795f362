//! What a disk holds, twice: as programs see it, and as it would be found after a loss of power.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    ffi::{OsStr, OsString},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Luck, Names};

pub(super) const ROOT: u64 = 1;
/// What reaches a disk in one piece.
const PAGE: usize = 4096;

pub(super) struct Store {
    names: Names,
    nodes: HashMap<u64, Node>,
    next: u64,
    /// Changes of directories that nothing has made durable yet, in order.
    pending: Vec<Change>,
    /// How many of them name a node: most syncs find none of theirs.
    named: HashMap<u64, usize>,
}

/// A file or a directory. Owner and mode are taken as durable at once.
pub(super) struct Node {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) body: Body,
    /// The directory of its newest name.
    parent: u64,
}

pub(super) enum Body {
    File(Content),
    Directory(Entries),
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    /// Numbers of the pages that were written since they were last synced.
    dirty: BTreeSet<usize>,
    /// The shortest the file has been since then, where it was cut.
    cut: Option<usize>,
}

#[derive(Default)]
pub(super) struct Entries {
    pub(super) live: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
}

/// What comes true as one: a rename takes one name away and sets another.
struct Change(Vec<Edit>);

struct Edit {
    directory: u64,
    name: OsString,
    node: Option<u64>,
}

impl Node {
    pub(super) fn file(mode: u16, uid: u32, gid: u32) -> Node {
        Node { mode, uid, gid, body: Body::File(Content::default()), parent: ROOT }
    }

    pub(super) fn directory(mode: u16, uid: u32, gid: u32) -> Node {
        Node { mode, uid, gid, body: Body::Directory(Entries::default()), parent: ROOT }
    }

    pub(super) fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.live.len() as u64,
            Body::Directory(_) => PAGE as u64,
        }
    }
}

impl Content {
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(data);
        if !data.is_empty() {
            self.dirty.extend(offset / PAGE..=(end - 1) / PAGE);
        }
    }

    pub(super) fn resize(&mut self, size: usize) {
        let before = self.live.len();
        if size < before {
            self.cut = Some(self.cut.map_or(size, |cut| cut.min(size)));
        }
        self.live.resize(size, 0);
        let (from, to) = (size.min(before), size.max(before));
        self.dirty.extend(from / PAGE..to.div_ceil(PAGE));
    }

    fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for page in std::mem::take(&mut self.dirty) {
            copy_page(&self.live, &mut self.durable, page);
        }
        self.cut = None;
    }

    /// Nothing more than what was synced; with luck, some of the rest, in no order.
    fn lose_power(&mut self, luck: Option<&mut StdRng>) {
        if let Some(luck) = luck {
            // Length and pages get to the disk each by themselves, and each page by itself.
            if let Some(cut) = self.cut.filter(|_| luck.random()) {
                self.durable.truncate(cut);
            }
            if luck.random() {
                self.durable.resize(self.live.len(), 0);
            }
            let odds = [0.0, 0.5, 1.0][luck.random_range(0..3)];
            for page in &self.dirty {
                if luck.random_bool(odds) {
                    copy_page(&self.live, &mut self.durable, *page);
                }
            }
        }
        self.dirty.clear();
        self.cut = None;
        self.live.clone_from(&self.durable);
    }
}

/// As much of it as `to` has room for.
fn copy_page(from: &[u8], to: &mut [u8], page: usize) {
    let start = page * PAGE;
    let end = (start + PAGE).min(from.len()).min(to.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

impl Store {
    pub(super) fn new(names: Names, root: Node) -> Store {
        Store { names, nodes: HashMap::from([(ROOT, root)]), next: ROOT + 1, pending: vec![], named: HashMap::new() }
    }

    pub(super) fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub(super) fn node_mut(&mut self, number: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&number)
    }

    pub(super) fn entries(&self, directory: u64) -> Option<&Entries> {
        match &self.nodes.get(&directory)?.body {
            Body::Directory(entries) => Some(entries),
            Body::File(_) => None,
        }
    }

    pub(super) fn content(&mut self, file: u64) -> Option<&mut Content> {
        match &mut self.nodes.get_mut(&file)?.body {
            Body::File(content) => Some(content),
            Body::Directory(_) => None,
        }
    }

    pub(super) fn child(&self, directory: u64, name: &OsStr) -> Option<u64> {
        self.entries(directory)?.live.get(name).copied()
    }

    /// Adds `node` to a directory and returns its number, which is never used again.
    pub(super) fn add(&mut self, directory: u64, name: &OsStr, node: Node) -> u64 {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        self.change(vec![(directory, name, Some(number))]);
        number
    }

    /// Sets and takes away names, all in one.
    pub(super) fn change(&mut self, edits: Vec<(u64, &OsStr, Option<u64>)>) {
        let edit = |(directory, name, node): (u64, &OsStr, _)| Edit { directory, name: name.to_owned(), node };
        let change = Change(edits.into_iter().map(edit).collect());
        for edit in &change.0 {
            let Some(number) = edit.node else { continue };
            *self.named.entry(number).or_default() += 1;
            if let Some(node) = self.nodes.get_mut(&number) {
                node.parent = edit.directory;
            }
        }
        self.apply(&change, |entries| &mut entries.live);
        self.pending.push(change);
    }

    fn apply(&mut self, change: &Change, side: impl Fn(&mut Entries) -> &mut BTreeMap<OsString, u64>) {
        for Edit { directory, name, node } in &change.0 {
            let Some(Node { body: Body::Directory(entries), .. }) = self.nodes.get_mut(directory) else { continue };
            match node {
                Some(node) => side(entries).insert(name.clone(), *node),
                None => side(entries).remove(name),
            };
        }
    }

    /// Makes a file's content durable, or a directory's names. A journaling file system keeps the names of a synced
    /// file too, and of the directories above it.
    pub(super) fn sync(&mut self, number: u64) {
        match self.nodes.get_mut(&number).map(|node| &mut node.body) {
            Some(Body::File(content)) => content.sync(),
            Some(Body::Directory(_)) => self.settle(|edit| edit.directory == number),
            None => return,
        }
        if matches!(self.names, Names::Journaled) {
            let path: Vec<u64> = std::iter::successors(Some(number), |number| {
                self.nodes.get(number).map(|node| node.parent).filter(|parent| *parent != ROOT)
            })
            .collect();
            if path.iter().any(|number| self.named.contains_key(number)) {
                self.settle(|edit| edit.node.is_some_and(|node| path.contains(&node)));
            }
        }
    }

    /// Makes the pending changes durable that have an edit as `wanted`, and the earlier ones they stand on.
    fn settle(&mut self, wanted: impl Fn(&Edit) -> bool) {
        let mut names: HashSet<(u64, &OsStr)> = HashSet::new();
        let mut settled = vec![false; self.pending.len()];
        for (index, change) in self.pending.iter().enumerate().rev() {
            let stands_on = |edit: &Edit| !names.is_empty() && names.contains(&(edit.directory, edit.name.as_os_str()));
            if change.0.iter().any(|edit| wanted(edit) || stands_on(edit)) {
                settled[index] = true;
                names.extend(change.0.iter().map(|edit| (edit.directory, edit.name.as_os_str())));
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for (change, settled) in pending.into_iter().zip(settled) {
            if settled {
                self.apply(&change, |entries| &mut entries.durable);
                for number in change.0.iter().filter_map(|edit| edit.node) {
                    if let Entry::Occupied(mut count) = self.named.entry(number) {
                        *count.get_mut() -= 1;
                        if *count.get() == 0 {
                            count.remove();
                        }
                    }
                }
            } else {
                self.pending.push(change);
            }
        }
    }

    /// From here on only what was durable is there, and what luck adds to it.
    pub(super) fn lose_power(&mut self, luck: Luck) {
        let mut luck = match luck {
            Luck::None => None,
            Luck::Seeded(seed) => Some(StdRng::seed_from_u64(seed)),
        };
        let pending = std::mem::take(&mut self.pending);
        self.named.clear();
        if let Some(luck) = &mut luck {
            // A journal is written in order. Without one each change is on its own, unless it stands on a lost one.
            let journaled = luck.random_range(0..=pending.len());
            let mut lost: HashSet<(u64, OsString)> = HashSet::new();
            for (index, change) in pending.iter().enumerate() {
                let names = || change.0.iter().map(|edit| (edit.directory, edit.name.clone()));
                let survives = match self.names {
                    Names::Journaled => index < journaled,
                    Names::Posix => luck.random() && !names().any(|name| lost.contains(&name)),
                };
                if survives {
                    self.apply(change, |entries| &mut entries.durable);
                } else {
                    lost.extend(names());
                }
            }
        }
        // In the order of their numbers, so that a seed always has the same luck.
        let mut numbers: Vec<u64> = self.nodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            match self.nodes.get_mut(&number).map(|node| &mut node.body) {
                Some(Body::File(content)) => content.lose_power(luck.as_mut()),
                Some(Body::Directory(entries)) => entries.live.clone_from(&entries.durable),
                None => {}
            }
        }
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        let (mut reachable, mut open) = (HashSet::from([ROOT]), vec![ROOT]);
        while let Some(number) = open.pop() {
            let children: Vec<u64> =
                self.entries(number).map(|e| e.live.values().copied().collect()).unwrap_or_default();
            open.extend(children.into_iter().filter(|child| reachable.insert(*child)));
        }
        self.nodes.retain(|number, _| reachable.contains(number));
    }
}
