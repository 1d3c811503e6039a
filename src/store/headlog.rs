//! The head of the store on the card: batches one behind the other in a file of fixed length, used round and round.
//!
//! A commit that only adds readings costs one write of whole blocks and one sync here, and no page of the store's file.
//! That file is written when something is sealed, and says then, in a [`Mark`], where the log stands.
//!
//! Promises: a batch whose append returned is found again after a power cut, whole; of what was under way, all or nothing.
//! The frames that a mark covers are all there, each named by the one before through its checksum, or the log is refused;
//! the frames after it are those of this mark's very state, without a gap. So a card that lied about a sync, an old log
//! beside a newer file, or the log of another store gives an older state of the same store or a refusal, never a mixture.
//!
//! ```text
//! first block: 8 bytes "wattdlog" | 16 bytes id of the log | u32 CRC-32 of both
//! frame, from a border of blocks on: u32 CRC-32 of what follows | u32 bytes of the batch | 16 bytes id of the log
//!   u64 number of the batch | u64 round: marks made before it | u32 CRC of the frame before | one batch
//! ```

use std::collections::VecDeque;
use std::io;

use redb::StorageBackend;

use super::BatchNumber;
use super::bytes::Input;
use crate::limits;

/// What is written at least, and at a border of which every frame begins: a page of the page cache.
pub const BLOCK: u64 = 4_096;
const MAGIC: &[u8; 8] = b"wattdlog";
const HEADER: usize = 4 + 4 + 16 + 8 + 8 + 4;

/// A place between two frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Bytes before it since the log was made.
    at: u64,
    /// The checksum of the frame before.
    chain: u32,
}

/// Where a log stands at one commit of the store's file, as the file keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    id: [u8; 16],
    /// Marks made before.
    round: u64,
    /// Where the first frame begins that is needed.
    floor: Place,
    /// Where the next one begins.
    end: Place,
    /// The number that the next batch has.
    next: BatchNumber,
}

impl Mark {
    /// The bytes for the `meta` table.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.to_vec();
        bytes.extend(self.round.to_le_bytes());
        for place in [self.floor, self.end] {
            bytes.extend(place.at.to_le_bytes());
            bytes.extend(place.chain.to_le_bytes());
        }
        bytes.extend(self.next.get().to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// From bytes of the `meta` table. None when they are damaged.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (content, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut input = Input(content);
        let id = input.array().ok()?;
        let mut u64_of = || input.array().ok().map(u64::from_le_bytes);
        let round = u64_of()?;
        let mut place = || {
            let at = u64::from_le_bytes(input.array().ok()?);
            Some(Place { at, chain: u32::from_le_bytes(input.array().ok()?) })
        };
        let (floor, end) = (place()?, place()?);
        let next = BatchNumber::new(u64::from_le_bytes(input.array().ok()?));
        input.end().ok()?;
        Some(Self { id, round, floor, end, next })
    }

    /// The number after the last batch that this mark knows of.
    pub const fn next(&self) -> BatchNumber {
        self.next
    }
}

/// What an append came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is there, durably.
    Done,
    /// There is no room until more is sealed.
    Full,
}

/// A batch found in a log.
pub type Found = (BatchNumber, Vec<u8>);

/// An open log.
#[derive(Debug)]
pub struct Log {
    file: Box<dyn StorageBackend>,
    /// Bytes of the blocks behind the first.
    length: u64,
    /// As the store's file has it.
    mark: Mark,
    /// Where the next frame goes.
    end: Place,
    /// The frames from the floor on: their batches, and where each begins.
    frames: VecDeque<(BatchNumber, Place)>,
    /// A batch that lies behind a frame that is damaged or lost.
    beyond: Option<BatchNumber>,
}

impl Log {
    /// A new log of `length` bytes under `id`, empty. Its mark is to be written before anything is appended.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(file: Box<dyn StorageBackend>, length: u64, id: [u8; 16], next: BatchNumber) -> io::Result<Self> {
        let size = (length / BLOCK).max(3) * BLOCK;
        file.set_len(size)?;
        // Written, not only reserved: a block that the file system has yet to hand out costs more at each sync later.
        let zeros = [0; 16 * 4_096];
        file.write(0, &first_block(id))?;
        let mut at = BLOCK;
        while at < size {
            let piece = usize::try_from(size - at).unwrap_or(zeros.len()).min(zeros.len());
            file.write(at, zeros.get(..piece).unwrap_or_default())?;
            at = at.saturating_add(u64::try_from(piece).unwrap_or(BLOCK));
        }
        file.sync_data()?;
        let empty = Place { at: 0, chain: crc32fast::hash(&id) };
        let mark = Mark { id, round: 0, floor: empty, end: empty, next };
        Ok(Self { file, length: size - BLOCK, mark, end: empty, frames: VecDeque::new(), beyond: None })
    }

    /// The log that `mark` was made of, and every batch in it, in order.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when frames that the mark covers are not there; others when it cannot be read.
    pub fn open(file: Box<dyn StorageBackend>, mark: Mark) -> io::Result<(Self, Vec<Found>)> {
        let size = file.len()? / BLOCK * BLOCK;
        let span = mark.end.at.checked_sub(mark.floor.at);
        if size < 3 * BLOCK || span.is_none_or(|span| span > size - BLOCK) {
            return Err(lost("it is missing or cut short"));
        }
        let mut first = [0; 28];
        file.read(0, &mut first)?;
        if first_block(mark.id).get(..28) != Some(&first) {
            return Err(lost("it belongs to another store, or to an earlier state of this one"));
        }
        let length = size - BLOCK;
        let mut log = Self { file, length, mark, end: mark.floor, frames: VecDeque::new(), beyond: None };
        let mut found = Vec::new();
        while log.end.at < mark.end.at {
            let frame = log.read()?.ok_or_else(|| lost("committed readings are not in it"))?;
            log.take(frame, &mut found);
        }
        if log.end != mark.end {
            return Err(lost("it is not the one that belongs to this file"));
        }
        let mut next = mark.next;
        while let Some(frame) = log.read()?.filter(|frame| frame.number == next && frame.round == mark.round) {
            log.take(frame, &mut found);
            next = BatchNumber::new(next.get().saturating_add(1));
        }
        log.beyond = log.look_beyond(next)?;
        Ok((log, found))
    }

    /// A batch that was committed and is left out, with all around it: a frame before it is damaged, or the card has lost
    /// what it said it kept. A power cut alone does not do that: nothing is begun before what is before it is kept.
    pub const fn beyond(&self) -> Option<BatchNumber> {
        self.beyond
    }

    fn look_beyond(&self, next: BatchNumber) -> io::Result<Option<BatchNumber>> {
        let mut at = self.end.at.saturating_add(BLOCK);
        while at.saturating_add(BLOCK).saturating_sub(self.mark.floor.at) <= self.length {
            let header = self.read_bytes(at, BLOCK)?;
            // Whatever was before it, it may be whole.
            let chain = header.get(HEADER - 4..HEADER).and_then(|chain| chain.try_into().ok()).map(u32::from_le_bytes);
            if let Some(frame) = self.read_at(Place { at, chain: chain.unwrap_or(0) })?
                && frame.round == self.mark.round
                && frame.number > next
            {
                return Ok(Some(frame.number));
            }
            at = at.saturating_add(BLOCK);
        }
        Ok(None)
    }

    /// Its mark.
    pub const fn mark(&self) -> Mark {
        self.mark
    }

    /// Adds a batch, durably. It can be repeated when it has failed.
    ///
    /// # Errors
    /// When the disk does.
    pub fn append(&mut self, number: BatchNumber, batch: &[u8]) -> io::Result<Appended> {
        let mut rest = u32::try_from(batch.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
        rest.extend(self.mark.id);
        rest.extend(number.get().to_le_bytes());
        rest.extend(self.mark.round.to_le_bytes());
        rest.extend(self.end.chain.to_le_bytes());
        rest.extend(batch);
        let crc = crc32fast::hash(&rest);
        let mut frame = crc.to_le_bytes().to_vec();
        frame.extend(rest);
        let size = blocks(frame.len());
        let end = self.end.at.saturating_add(size);
        if end.saturating_sub(self.mark.floor.at) > self.length {
            return Ok(Appended::Full);
        }
        frame.resize(usize::try_from(size).map_err(io::Error::other)?, 0);
        let at = self.end.at % self.length;
        let room = usize::try_from(self.length - at).unwrap_or(usize::MAX);
        let (first, second) = frame.split_at(frame.len().min(room));
        self.file.write(BLOCK.saturating_add(at), first)?;
        if !second.is_empty() {
            self.file.write(BLOCK, second)?;
        }
        self.file.sync_data()?;
        self.frames.push_back((number, self.end));
        self.end = Place { at: end, chain: crc };
        Ok(Appended::Done)
    }

    /// The mark for a commit of the store's file, after which the batches that `is_needed` denies are needed no more, up to
    /// the first that is.
    pub fn next_mark(&self, next: BatchNumber, is_needed: impl Fn(BatchNumber) -> bool) -> Mark {
        let first = self.frames.iter().find(|(number, _)| is_needed(*number));
        Mark {
            id: self.mark.id,
            round: self.mark.round.saturating_add(1),
            floor: first.map_or(self.end, |(_, place)| *place),
            end: self.end,
            next,
        }
    }

    /// The store's file has this mark now: what lies before its floor may be written over.
    pub fn settle(&mut self, mark: Mark) {
        self.mark = mark;
        while self.frames.front().is_some_and(|(_, place)| place.at < mark.floor.at) {
            self.frames.pop_front();
        }
    }

    /// Every batch in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn batches(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for (_, place) in &self.frames {
            let frame = self.read_at(*place)?.ok_or_else(|| lost("committed readings are not in it"))?;
            found.push((frame.number, frame.batch));
        }
        Ok(found)
    }

    fn take(&mut self, frame: Frame, found: &mut Vec<Found>) {
        self.frames.push_back((frame.number, self.end));
        self.end = frame.end;
        found.push((frame.number, frame.batch));
    }

    fn read(&self) -> io::Result<Option<Frame>> {
        // What is no longer covered by the floor may be written over: nothing is read round the whole log.
        let left = self.length.saturating_sub(self.end.at.saturating_sub(self.mark.floor.at));
        if left < BLOCK { Ok(None) } else { self.read_at(self.end) }
    }

    /// The frame at a place; None when there is no whole one that follows what is before.
    fn read_at(&self, place: Place) -> io::Result<Option<Frame>> {
        let mut bytes = self.read_bytes(place.at, BLOCK)?;
        let mut input = Input(&bytes);
        let fields = || {
            let crc = u32::from_le_bytes(input.array().ok()?);
            let length = usize::try_from(u32::from_le_bytes(input.array().ok()?)).ok()?;
            let id: [u8; 16] = input.array().ok()?;
            let number = BatchNumber::new(u64::from_le_bytes(input.array().ok()?));
            let round = u64::from_le_bytes(input.array().ok()?);
            let chain = u32::from_le_bytes(input.array().ok()?);
            let fits = length <= limits::BATCH_BYTES && blocks(HEADER + length) <= self.length;
            (fits && id == self.mark.id && chain == place.chain).then_some((crc, length, number, round))
        };
        let mut fields = fields;
        let Some((crc, length, number, round)) = fields() else { return Ok(None) };
        let size = blocks(HEADER + length);
        if size > BLOCK {
            bytes.extend(self.read_bytes(place.at.saturating_add(BLOCK), size - BLOCK)?);
        }
        let checked = bytes.get(4..HEADER + length).unwrap_or_default();
        if crc32fast::hash(checked) != crc {
            return Ok(None);
        }
        let batch = bytes.get(HEADER..HEADER + length).unwrap_or_default().to_vec();
        Ok(Some(Frame { number, round, batch, end: Place { at: place.at.saturating_add(size), chain: crc } }))
    }

    fn read_bytes(&self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let at = at % self.length;
        let room = usize::try_from(self.length - at).unwrap_or(usize::MAX);
        let (first, second) = bytes.split_at_mut(room.min(usize::try_from(length).unwrap_or(usize::MAX)));
        self.file.read(BLOCK.saturating_add(at), first)?;
        if !second.is_empty() {
            self.file.read(BLOCK, second)?;
        }
        Ok(bytes)
    }
}

/// A frame read back.
struct Frame {
    number: BatchNumber,
    round: u64,
    batch: Vec<u8>,
    end: Place,
}

fn first_block(id: [u8; 16]) -> Vec<u8> {
    let mut block = MAGIC.to_vec();
    block.extend(id);
    block.extend(crc32fast::hash(&block).to_le_bytes());
    block.resize(4_096, 0);
    block
}

/// Bytes of the blocks that so many bytes take.
fn blocks(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX / 2).div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn lost(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log beside the store: {what}"))
}
