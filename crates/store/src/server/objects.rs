//! The S3 operations that nodes need, over [`Files`]. All others are answered with `NotImplemented` by s3s, and denied
//! before that by [`super::access`].

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::stream;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag,
    ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::server::files::{Files, OBJECT_BYTES_MAX, ReceiveError, Stat};
use uploads::Uploads;

mod uploads;

/// Bytes read from disk at a time.
const READ_BYTES: usize = 256 << 10;
const LIST_MAX: usize = 1000;

pub(super) struct Objects {
    files: Arc<Files>,
    uploads: Uploads,
}

impl Objects {
    pub(super) fn new(files: Files) -> Self {
        let files = Arc::new(files);
        Self { uploads: Uploads::new(Arc::clone(&files)), files }
    }

    /// Opens an object. All that is then read of it belongs to one version, even if it is replaced meanwhile.
    async fn open(&self, bucket: &str, key: &str) -> S3Result<(tokio::fs::File, Stat)> {
        check(key)?;
        let file = tokio::fs::File::open(self.files.object(bucket, key)).await.map_err(disk)?;
        let stat = Stat::of(&file.metadata().await.map_err(disk)?).map_err(disk)?;
        Ok((file, stat))
    }
}

#[async_trait]
impl S3 for Objects {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let (mut file, stat) = self.open(&input.bucket, &input.key).await?;
        if let Some(ETagCondition::ETag(expected)) = &input.if_match
            && expected.value() != stat.tag
        {
            // A reader that resumes must not splice two versions.
            return Err(s3_error!(PreconditionFailed));
        }
        let (start, length, content_range) = match input.range {
            None => (0, stat.bytes, None),
            Some(range) => {
                let range = range.check(stat.bytes)?;
                let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, stat.bytes);
                (range.start, range.end - range.start, Some(shown))
            }
        };
        if start > 0 {
            file.seek(io::SeekFrom::Start(start)).await.map_err(disk)?;
        }
        Ok(S3Response::new(GetObjectOutput {
            body: Some(body(file, length)),
            content_length: Some(length as i64),
            content_range,
            last_modified: Some(stat.modified.into()),
            e_tag: Some(ETag::Strong(stat.tag)),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, stat) = self.open(&request.input.bucket, &request.input.key).await?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stat.bytes as i64),
            last_modified: Some(stat.modified.into()),
            e_tag: Some(ETag::Strong(stat.tag)),
            ..Default::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        check(&input.key)?;
        if input.if_match.is_some() || input.if_none_match.is_some() {
            return Err(s3_error!(NotImplemented, "conditional writes are not supported"));
        }
        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        check_length(input.content_length, OBJECT_BYTES_MAX)?;
        let (incoming, stat) = self.files.receive(&input.bucket, body, OBJECT_BYTES_MAX).await.map_err(receive)?;
        let target = self.files.object(&input.bucket, &input.key);
        blocking(move || incoming.keep(&target)).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(stat.tag)), ..Default::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        check(&request.input.key)?;
        let (files, input) = (Arc::clone(&self.files), request.input);
        blocking(move || match std::fs::remove_file(files.object(&input.bucket, &input.key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "listing with a delimiter is not supported"));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().max(input.start_after.clone()).unwrap_or_default();
        let max = input.max_keys.map_or(LIST_MAX, |max| usize::try_from(max).unwrap_or(0)).min(LIST_MAX);
        let (files, bucket) = (Arc::clone(&self.files), input.bucket.clone());
        let (found, more) = blocking(move || files.list(&bucket, &prefix, &after, max)).await?;
        let next = found.last().filter(|_| more).map(|(key, _)| key.clone());
        let contents: Vec<Object> = found.into_iter().map(|(key, stat)| object(key, stat)).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some(contents.len() as i32),
            max_keys: Some(max as i32),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(contents),
            name: Some(input.bucket),
            prefix: input.prefix,
            continuation_token: input.continuation_token,
            start_after: input.start_after,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        check(&input.key)?;
        let upload_id = self.uploads.create(&input.bucket, &input.key)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let room = self.uploads.room(&input.upload_id, &input.bucket, &input.key)?;
        check_length(input.content_length, room)?;
        let (incoming, stat) = self.files.receive(&input.bucket, body, room).await.map_err(receive)?;
        let tag = self.uploads.add(&input.upload_id, input.part_number, incoming, stat)?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(tag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        if input.if_match.is_some() || input.if_none_match.is_some() {
            return Err(s3_error!(NotImplemented, "conditional writes are not supported"));
        }
        let listed = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts = self.uploads.take(&input.upload_id, &input.bucket, &input.key, &listed)?;
        let (files, bucket, key) = (Arc::clone(&self.files), input.bucket.clone(), input.key.clone());
        let stat = blocking(move || uploads::join(&files, &bucket, &key, parts)).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(stat.tag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        self.uploads.abort(&input.upload_id, &input.bucket, &input.key)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

fn object(key: String, stat: Stat) -> Object {
    Object {
        key: Some(key),
        size: Some(stat.bytes as i64),
        last_modified: Some(stat.modified.into()),
        e_tag: Some(ETag::Strong(stat.tag)),
        ..Default::default()
    }
}

/// `length` bytes of `file` from its current position.
fn body(file: tokio::fs::File, length: u64) -> StreamingBlob {
    StreamingBlob::wrap(stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = BytesMut::with_capacity(READ_BYTES.min(left as usize));
        let read = (&mut file).take(left).read_buf(&mut chunk).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(Some((chunk.freeze(), (file, left - read as u64))))
    }))
}

fn check(key: &str) -> S3Result<()> {
    crate::keys::check(key).map_err(|error| S3Error::with_source(S3ErrorCode::InvalidArgument, Box::new(error)))
}

/// Refuses a body by its announced length, before it is received.
fn check_length(announced_bytes: Option<i64>, max_bytes: u64) -> S3Result<()> {
    match announced_bytes {
        Some(bytes) if u64::try_from(bytes).is_ok_and(|bytes| bytes > max_bytes) => Err(s3_error!(EntityTooLarge)),
        _ => Ok(()),
    }
}

fn disk(error: io::Error) -> S3Error {
    if error.kind() == io::ErrorKind::NotFound {
        return s3_error!(NoSuchKey);
    }
    tracing::warn!(%error, "the S3 server's disk failed");
    S3Error::with_source(S3ErrorCode::InternalError, Box::new(error))
}

fn receive(error: ReceiveError) -> S3Error {
    match error {
        ReceiveError::TooLarge => s3_error!(EntityTooLarge),
        ReceiveError::Sender(source) => S3Error::with_source(S3ErrorCode::IncompleteBody, source),
        ReceiveError::Disk(source) => disk(source),
    }
}

/// Runs `work`, which waits for the disk, on a thread where that holds up nobody. It finishes even if its client has
/// gone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> S3Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| S3Error::with_source(S3ErrorCode::InternalError, Box::new(panic)))?.map_err(disk)
}
