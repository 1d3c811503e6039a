//! `backup FILE` and `restore FILE`: everything that is stored into a file, and back.
//!
//! A backup comes from the running agent, else from the closed store. It is written beside, verified and renamed, so that
//! what has the file's name is whole.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::args::Existing;
use crate::agent;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client;
use crate::limits;
use crate::store::backup::{self, BackupError, Summary};
use crate::store::{self, StoreError};

/// Writes a backup to `file`.
pub async fn run(config: &Config, clock: &dyn Clock, file: &Path) -> Outcome {
    let part = beside(file);
    let made = make(config, clock, &part).await.and_then(|summary| {
        store::put_in_place(&part, file)?;
        Ok(summary)
    });
    match made {
        Ok(Summary { rows, .. }) => {
            Outcome { stderr: format!("{}: {rows} rows, whole and verified\n", file.display()), ..Outcome::default() }
        }
        Err(error) => {
            let _ = std::fs::remove_file(&part); // the error says more
            refuse(file, &error)
        }
    }
}

fn beside(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".part");
    PathBuf::from(name)
}

fn refuse(file: &Path, error: &BackupError) -> Outcome {
    Outcome { stderr: format!("{}: {error}\n", file.display()), code: 1, ..Outcome::default() }
}

async fn make(config: &Config, clock: &dyn Clock, part: &Path) -> Result<Summary, BackupError> {
    let mut out = BufWriter::new(File::create(part)?);
    let token = agent::token(config).ok().flatten();
    let patience = limits::BACKUP_TIME.saturating_add(limits::HTTP_REPLY_TIME);
    let path = "/api/v1/backup";
    let fetched =
        client::download(clock, config.listen, path, token.as_ref(), patience, |bytes| out.write_all(bytes)).await;
    match fetched {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            backup::of_closed(&store::path_in(&config.data_dir), &mut out)?;
        }
        Err(error) => return Err(error.into()),
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    backup::verify(part)
}

/// Makes a store in `data_dir` of the backup `file`.
#[must_use]
pub fn restore(data_dir: &Path, file: &Path, existing: Existing) -> Outcome {
    let path = store::path_in(data_dir);
    let made = std::fs::create_dir_all(data_dir).map_err(BackupError::Io);
    match made.and_then(|()| backup::restore(file, &path, existing == Existing::Replace)) {
        Ok(restored) => {
            let mut text = format!("{}: {} rows restored\n", path.display(), restored.summary.rows);
            for problem in restored.problems {
                text.push_str(&format!("damaged when the backup was made: {problem}\n"));
            }
            Outcome { stderr: text, ..Outcome::default() }
        }
        Err(BackupError::Store(StoreError::InUse)) => Outcome {
            stderr: format!("{}: a running wattd has it open; stop it first, then restore\n", path.display()),
            code: 1,
            ..Outcome::default()
        },
        Err(error) => refuse(file, &error),
    }
}
