//! Uploads in parts: the parts are kept among the incoming files until they are joined. A restart forgets them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use s3s::dto::CompletedPart;
use s3s::{S3Result, s3_error};

use crate::server::files::{Files, Incoming, OBJECT_BYTES_MAX, Stat};

/// Most uploads that one bucket may have open at once.
const OPEN_MAX: usize = 32;
/// S3's own limit.
const PARTS_MAX: i32 = 10_000;

pub(super) struct Uploads {
    files: Arc<Files>,
    open: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, (Incoming, Stat)>,
}

impl Upload {
    fn bytes(&self) -> u64 {
        self.parts.values().map(|(_, stat)| stat.bytes).sum()
    }
}

impl Uploads {
    pub(super) fn new(files: Arc<Files>) -> Self {
        Self { files, open: Mutex::default() }
    }

    pub(super) fn create(&self, bucket: &str, key: &str) -> S3Result<String> {
        let mut open = self.lock();
        if open.values().filter(|upload| upload.bucket == bucket).count() >= OPEN_MAX {
            return Err(s3_error!(SlowDown, "too many uploads are open in this bucket: complete or abort some"));
        }
        let id = self.files.number().to_string();
        open.insert(id.clone(), Upload { bucket: bucket.into(), key: key.into(), parts: BTreeMap::new() });
        Ok(id)
    }

    /// How many more bytes the upload may take.
    pub(super) fn room(&self, id: &str, bucket: &str, key: &str) -> S3Result<u64> {
        let open = self.lock();
        let upload = open.get(id).filter(|upload| upload.bucket == bucket && upload.key == key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(OBJECT_BYTES_MAX.saturating_sub(upload.bytes()))
    }

    /// Adds a part, or replaces one, and returns its tag. [`Uploads::room`] has checked whose upload it is.
    pub(super) fn add(&self, id: &str, part: i32, incoming: Incoming, stat: Stat) -> S3Result<String> {
        if !(1..=PARTS_MAX).contains(&part) {
            return Err(s3_error!(InvalidArgument, "parts are numbered from 1 to 10000"));
        }
        let tag = stat.tag.clone();
        let mut open = self.lock();
        let upload = open.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        // Parts that arrived at the same time each saw the same room.
        if upload.bytes() + stat.bytes > OBJECT_BYTES_MAX {
            return Err(s3_error!(EntityTooLarge));
        }
        upload.parts.insert(part, (incoming, stat));
        Ok(tag)
    }

    /// Closes the upload and hands out its parts in order, if they are those that the client lists.
    pub(super) fn take(&self, id: &str, bucket: &str, key: &str, listed: &[CompletedPart]) -> S3Result<Vec<Incoming>> {
        let mut open = self.lock();
        let upload = open.get(id).filter(|upload| upload.bucket == bucket && upload.key == key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let sent = upload.parts.iter().map(|(number, (_, stat))| (Some(*number), Some(stat.tag.as_str())));
        let named = listed.iter().map(|part| (part.part_number, part.e_tag.as_ref().map(s3s::dto::ETag::value)));
        if listed.is_empty() || !sent.eq(named) {
            return Err(s3_error!(InvalidPart, "the list must name every part that was sent, in order, with its tag"));
        }
        let upload = open.remove(id).expect("it was found above, under this lock");
        Ok(upload.parts.into_values().map(|(incoming, _)| incoming).collect())
    }

    pub(super) fn abort(&self, id: &str, bucket: &str, key: &str) -> S3Result<()> {
        self.room(id, bucket, key)?;
        self.lock().remove(id);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes one object of `parts`. Blocks.
pub(super) fn join(files: &Files, bucket: &str, key: &str, parts: Vec<Incoming>) -> io::Result<Stat> {
    let whole = files.incoming(bucket);
    let mut out = File::create(whole.path())?;
    for part in parts {
        io::copy(&mut File::open(part.path())?, &mut out)?; // each part is removed as soon as it is copied
    }
    let stat = Stat::of(&out.metadata()?)?;
    whole.keep(&files.object(bucket, key))?;
    Ok(stat)
}
