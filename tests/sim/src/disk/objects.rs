//! The blobs of a hub on its simulated disk, as the object store that the hub expects.

use std::{fmt, io, path::PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use network::disk::Disk;
use object_store::{
    Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

use super::SimDisk;

/// Objects as files of one folder.
#[derive(Debug)]
pub struct Objects {
    disk: SimDisk,
    folder: PathBuf,
}

impl Objects {
    /// The objects in a folder.
    #[must_use]
    pub fn new(disk: SimDisk, folder: PathBuf) -> Self {
        Self { disk, folder }
    }

    fn file(&self, location: &Path) -> PathBuf {
        self.folder.join(location.as_ref())
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "simulated objects in {}", self.folder.display())
    }
}

fn failed(location: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound {
            path: location.to_string(),
            source: Box::new(error),
        },
        _ => Error::Generic {
            store: "simulated",
            source: Box::new(error),
        },
    }
}

fn unused<T>() -> Result<T> {
    Err(Error::NotImplemented)
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        _options: PutOptions,
    ) -> Result<PutResult> {
        let place = self.file(location);
        let draft = place.with_extension("draft");
        let mut content = |into: &mut dyn io::Write| {
            for part in &payload {
                into.write_all(part)?;
            }
            Ok(())
        };
        self.disk
            .write(&draft, &mut content)
            .and_then(|()| Disk::rename(&self.disk, &draft, &place))
            .map_err(|error| failed(location, error))?;
        Ok(PutResult {
            e_tag: None,
            version: None,
        })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unused()
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let place = self.file(location);
        let length = self.disk.length(&place);
        let length = length.map_err(|error| failed(location, error))?;
        let range = match options.range {
            Some(range) => range.as_range(length).map_err(|error| Error::Generic {
                store: "simulated",
                source: Box::new(error),
            })?,
            None => 0..length,
        };
        let bytes = if options.head {
            Bytes::new()
        } else {
            let whole = self.disk.read(&place);
            let whole = Bytes::from(whole.map_err(|error| failed(location, error))?);
            whole.slice(range.start as usize..range.end as usize)
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
            meta: ObjectMeta {
                location: location.clone(),
                last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
                size: length,
                e_tag: None,
                version: None,
            },
            range,
            attributes: object_store::Attributes::default(),
        })
    }

    async fn delete(&self, location: &Path) -> Result<()> {
        Disk::remove(&self.disk, &self.file(location)).map_err(|error| failed(location, error))
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { unused() }).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        unused()
    }

    async fn copy(&self, _from: &Path, _to: &Path) -> Result<()> {
        unused()
    }

    async fn copy_if_not_exists(&self, _from: &Path, _to: &Path) -> Result<()> {
        unused()
    }
}
