//! A node's home folder: its run, its credentials, and the command line that starts it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use templar_protocol::bucket::BucketLocator;
use templar_protocol::run::RunSpec;
use templar_record::event::Role;
use templar_store::{Credential, OwnBucket};

/// A bucket locator as text.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct LocatorFile {
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// `bucket.toml`: a node's own bucket. Holds a secret that only its owner may read.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct BucketFile {
    /// The credential that may write.
    pub write: WriteKey,
    /// What the node publishes on chain: where the bucket is, and a credential that may only read.
    pub public: LocatorFile,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct WriteKey {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl From<BucketLocator> for LocatorFile {
    fn from(locator: BucketLocator) -> Self {
        let BucketLocator { endpoint, bucket, region, access_key_id, secret_access_key } = locator;
        Self { endpoint, bucket, region, access_key_id, secret_access_key }
    }
}

impl From<LocatorFile> for BucketLocator {
    fn from(file: LocatorFile) -> Self {
        let LocatorFile { endpoint, bucket, region, access_key_id, secret_access_key } = file;
        Self { endpoint, bucket, region, access_key_id, secret_access_key }
    }
}

impl From<OwnBucket> for BucketFile {
    fn from(own: OwnBucket) -> Self {
        let Credential { access_key_id, secret_access_key } = own.write;
        Self { write: WriteKey { access_key_id, secret_access_key }, public: own.locator.into() }
    }
}

impl From<BucketFile> for OwnBucket {
    fn from(file: BucketFile) -> Self {
        let WriteKey { access_key_id, secret_access_key } = file.write;
        Self { locator: file.public.into(), write: Credential { access_key_id, secret_access_key } }
    }
}

/// The contents of a node's home folder, except for its key.
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct Home<'a> {
    pub name: &'a str,
    pub role: Role,
    pub run: &'a RunSpec,
    pub chain: &'a str,
    pub bucket: &'a OwnBucket,
    pub data: &'a BucketLocator,
}

impl Home<'_> {
    /// Writes the run and the credentials, and replaces those of an earlier start. Only the owner may read the
    /// credentials.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("run.toml"), self.run.to_toml())?;
        replace_secret(&folder.join("bucket.toml"), &to_toml(&BucketFile::from(self.bucket.clone())))?;
        replace_secret(&folder.join("data.toml"), &to_toml(&LocatorFile::from(self.data.clone())))
    }

    /// The command line of the node whose home is `folder`.
    pub fn arguments(&self, folder: &Path) -> Vec<String> {
        let verb = match self.role {
            Role::Miner => "miner",
            Role::Validator => "validator",
        };
        let path = |name: &str| folder.join(name).display().to_string();
        let options = [
            ("--run", path("run.toml")),
            ("--name", self.name.to_owned()),
            ("--chain", self.chain.to_owned()),
            ("--key", path("key.hex")),
            ("--bucket", path("bucket.toml")),
            ("--data-bucket", path("data.toml")),
            ("--data-folder", path("dataset")),
            ("--state-folder", path("state")),
        ];
        let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        std::iter::once(verb.to_owned()).chain(options).collect()
    }
}

fn to_toml<T: Serialize>(value: &T) -> String {
    toml::to_string(value).expect("strings only")
}

/// Creates a file that only its owner may read, or replaces an older one.
pub(crate) fn replace_secret(path: &Path, text: &str) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => write_secret(path, text),
    }
}

/// Creates a file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::{bucket, spec};
    use templar_store::dev_credentials;

    use super::*;

    /// `--data` is only an old name of `--data-bucket`, and the option of other verbs that names text.
    #[test]
    fn the_command_line_names_the_options_of_a_node() {
        let (run, data) = (spec(), bucket());
        let own = OwnBucket { locator: data.clone(), write: dev_credentials(1, "a").0 };
        let home = Home { name: "a", role: Role::Miner, run: &run, chain: "ws://c", bucket: &own, data: &data };
        let arguments = home.arguments(Path::new("f"));
        assert_eq!(arguments[0], "miner");
        let options: Vec<&str> = arguments[1..].iter().step_by(2).map(String::as_str).collect();
        let expected =
            ["--run", "--name", "--chain", "--key", "--bucket", "--data-bucket", "--data-folder", "--state-folder"];
        assert_eq!(options, expected);
    }
}
