//! The disk as the kernel asks for it. Nothing is cached there (every answer is valid for no time, and reads and
//! writes come straight to us), so that a change of what is true needs no word to the kernel.

use std::{
    ffi::OsStr,
    sync::{Arc, MutexGuard},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::{
    Shared, State,
    store::{Body, Node, ROOT, Store},
};

const UNCACHED: Duration = Duration::ZERO;
/// What it claims to have free, in blocks of 4 KiB: 64 GiB.
const BLOCKS: u64 = 16 << 20;

pub(super) struct Fuse(pub(super) Arc<Shared>);

struct Guard<'a>(MutexGuard<'a, State>);

impl Fuse {
    fn store(&self) -> Result<Guard<'_>, Errno> {
        self.0.powered().map(Guard).ok_or(Errno::EIO)
    }
}

impl std::ops::Deref for Guard<'_> {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.0.store
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Store {
        &mut self.0.store
    }
}

fn attributes(store: &Store, number: u64) -> Result<FileAttr, Errno> {
    let node = store.node(number).ok_or(Errno::ENOENT)?;
    let kind = match node.body {
        Body::File(_) => FileType::RegularFile,
        Body::Directory(_) => FileType::Directory,
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size: node.size(),
        blocks: node.size().div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: node.mode,
        nlink: 1,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn new_entry(store: &mut Store, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
    store.entries(parent.0).ok_or(Errno::ENOTDIR)?;
    if store.child(parent.0, name).is_some() {
        return Err(Errno::EEXIST);
    }
    let number = store.add(parent.0, name, node);
    attributes(store, number)
}

fn permissions(mode: u32, umask: u32) -> u16 {
    (mode & !umask & 0o7777) as u16
}

/// A directory must be empty to be removed or replaced, and a file must not stand where a directory is meant.
fn removable(store: &Store, parent: u64, name: &OsStr, directory: bool) -> Result<(), Errno> {
    let number = store.child(parent, name).ok_or(Errno::ENOENT)?;
    match (store.entries(number), directory) {
        (Some(entries), true) if entries.live.is_empty() => Ok(()),
        (Some(_), true) => Err(Errno::ENOTEMPTY),
        (Some(_), false) => Err(Errno::EISDIR),
        (None, true) => Err(Errno::ENOTDIR),
        (None, false) => Ok(()),
    }
}

/// A file opened so syncs with every write.
fn synchronous(flags: OpenFlags) -> bool {
    // O_SYNC is O_DSYNC and one bit more.
    flags.0 & 0o10000 != 0
}

macro_rules! answer {
    ($reply:ident, $result:expr, |$value:ident| $answer:expr) => {
        match $result {
            Ok($value) => $answer,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Fuse {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.store().and_then(|store| {
            let number = store.child(parent.0, name).ok_or(Errno::ENOENT)?;
            attributes(&store, number)
        });
        answer!(reply, found, |attr| reply.entry(&UNCACHED, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.store().and_then(|store| attributes(&store, number.0));
        answer!(reply, found, |attr| reply.attr(&UNCACHED, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.store().and_then(|mut store| {
            let node = store.node_mut(number.0).ok_or(Errno::ENOENT)?;
            node.mode = mode.map_or(node.mode, |mode| permissions(mode, 0));
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
            if let Some(size) = size {
                store.content(number.0).ok_or(Errno::EISDIR)?.resize(usize(size)?);
            }
            attributes(&store, number.0)
        });
        answer!(reply, set, |attr| reply.attr(&UNCACHED, &attr));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.store().and_then(|mut store| {
            let node = Node::directory(permissions(mode, umask), request.uid(), request.gid());
            new_entry(&mut store, parent, name, node)
        });
        answer!(reply, made, |attr| reply.entry(&UNCACHED, &attr, Generation(0)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.store().and_then(|mut store| {
            let node = Node::file(permissions(mode, umask), request.uid(), request.gid());
            new_entry(&mut store, parent, name, node)
        });
        answer!(reply, made, |attr| {
            reply.created(&UNCACHED, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.store().and_then(|mut store| {
            removable(&store, parent.0, name, false)?;
            store.change(vec![(parent.0, name, None)]);
            Ok(())
        });
        answer!(reply, removed, |_done| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.store().and_then(|mut store| {
            removable(&store, parent.0, name, true)?;
            store.change(vec![(parent.0, name, None)]);
            Ok(())
        });
        answer!(reply, removed, |_done| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.store().and_then(|mut store| {
            if !flags.is_empty() {
                return Err(Errno::EINVAL);
            }
            let number = store.child(parent.0, name).ok_or(Errno::ENOENT)?;
            match store.child(new_parent.0, new_name) {
                Some(other) if other == number => return Ok(()),
                Some(_) => removable(&store, new_parent.0, new_name, store.entries(number).is_some())?,
                None => {}
            }
            store.change(vec![(parent.0, name, None), (new_parent.0, new_name, Some(number))]);
            Ok(())
        });
        answer!(reply, renamed, |_done| reply.ok());
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.store().and_then(|mut store| {
            if store.child(parent.0, name).is_some() {
                return Err(Errno::EEXIST);
            }
            store.change(vec![(parent.0, name, Some(number.0))]);
            attributes(&store, number.0)
        });
        answer!(reply, linked, |attr| reply.entry(&UNCACHED, &attr, Generation(0)));
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let found = self.store().and_then(|store| attributes(&store, number.0));
        answer!(reply, found, |_attr| reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut store = match self.store() {
            Ok(store) => store,
            Err(error) => return reply.error(error),
        };
        let Some(content) = store.content(number.0) else { return reply.error(Errno::EISDIR) };
        let start = usize(offset).map_or(content.live.len(), |offset| offset.min(content.live.len()));
        let end = start.saturating_add(size as usize).min(content.live.len());
        reply.data(&content.live[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.store().and_then(|mut store| {
            store.content(number.0).ok_or(Errno::EISDIR)?.write(usize(offset)?, data);
            if synchronous(flags) {
                store.sync(number.0);
            }
            Ok(())
        });
        answer!(reply, written, |_done| reply.written(data.len() as u32));
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.store().map(|mut store| store.sync(number.0));
        answer!(reply, synced, |_done| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.store().map(|mut store| store.sync(number.0));
        answer!(reply, synced, |_done| reply.ok());
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.store().and_then(|store| {
            let entries = store.entries(number.0).ok_or(Errno::ENOTDIR)?;
            let itself = [(OsStr::new("."), number.0), (OsStr::new(".."), ROOT)];
            let names = entries.live.iter().map(|(name, child)| (name.as_os_str(), *child));
            let skipped = usize(offset)?;
            for (index, (name, child)) in itself.into_iter().chain(names).enumerate().skip(skipped) {
                let kind = if store.entries(child).is_some() { FileType::Directory } else { FileType::RegularFile };
                if reply.add(INodeNo(child), index as u64 + 1, kind, name) {
                    break;
                }
            }
            Ok(())
        });
        answer!(reply, listed, |_done| reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, 4096, 255, 4096);
    }
}

fn usize(number: u64) -> Result<usize, Errno> {
    usize::try_from(number).map_err(|_| Errno::EFBIG)
}
