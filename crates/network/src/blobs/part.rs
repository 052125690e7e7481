//! A part of a blob in memory, for whoever gathers blobs in a place of its own.

use bytes::Bytes;
use protocol::units::BlobReference;
use reqwest::{Method, StatusCode};

use crate::client::{ClientError, HubClient};

impl HubClient {
    /// At most `bytes_max` bytes of a blob from `offset` on; whether the whole hashes to its name is the caller's to check.
    ///
    /// `header` goes along, for hubs that give some blobs to some only.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Malformed`] for an answer that is not that part.
    pub async fn blob_part(
        &self,
        blob: &BlobReference,
        offset: u64,
        bytes_max: usize,
        header: Option<(&'static str, &str)>,
    ) -> Result<Bytes, ClientError> {
        let left = blob.bytes.saturating_sub(offset);
        let length = left.min(bytes_max as u64);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let range = format!("bytes={offset}-{}", offset + length - 1);
        let mut call = self
            .call(Method::GET, &format!("blobs/{}", blob.hash))
            .without_timeout()
            .body_max(bytes_max)
            .header("range", range);
        if let Some((name, value)) = header {
            call = call.header(name, value.to_owned());
        }
        let malformed = |problem: &str| ClientError::Malformed {
            what: "a blob",
            problem: problem.to_owned(),
        };
        let (status, body) = self.status_and_bytes(call).await?;
        let is_part = status == StatusCode::PARTIAL_CONTENT;
        let is_whole = status == StatusCode::OK && offset == 0 && length == blob.bytes;
        if !(is_part || is_whole) || body.len() as u64 != length {
            return Err(malformed("it is not the part that was asked for"));
        }
        Ok(body.into())
    }
}
