//! How the commands find a member on this machine.

use crate::member::ADMIN_SOCKET;
use anyhow::Context;
use clap::Args;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use synod_client::wire::channel;
use synod_client::{CallError, Client, Reason};

use synod_proto::admin::v1::local_client::LocalClient;
use synod_proto::formerly::{AdminClient, Either};
use tonic::Status;
use tonic::transport::Channel;

/// How long a command tries what does not end by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// A member's socket.
#[derive(Clone, Debug, Args)]
pub(super) struct Socket {
    /// The member's socket.
    #[arg(long, env = "SYNOD_SOCKET", default_value = "/run/synod/synod.sock", value_name = "PATH")]
    pub(super) socket: PathBuf,
}

impl Socket {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket)?.timeout(PATIENCE))
    }

    pub(super) fn explain(&self, error: CallError) -> anyhow::Error {
        if error.reason == Reason::Transport {
            return anyhow::Error::new(error).context(silent(&self.socket));
        }
        anyhow::Error::new(error)
    }
}

/// Why nobody answers on a socket, and what to do.
fn silent(path: &Path) -> String {
    let path_shown = path.display();
    match UnixStream::connect(path).map_err(|error| error.kind()) {
        Err(ErrorKind::NotFound) => {
            format!(
                "there is no socket at {path_shown}: does a member run here? Name it with --socket or SYNOD_SOCKET"
            )
        }
        Err(ErrorKind::PermissionDenied) => {
            format!("this user may not open {path_shown}: join the group that the file belongs to")
        }
        Err(ErrorKind::ConnectionRefused) => {
            format!("nobody listens on {path_shown} any more: start the member")
        }
        Err(_) | Ok(_) => format!("no member answers on {path_shown}"),
    }
}

/// A member's data directory, which holds its admin socket.
#[derive(Clone, Debug, Args)]
pub(super) struct DataDir {
    /// The member's data directory: its admin socket is there.
    #[arg(long, env = "SYNOD_DATA_DIR", default_value = "/data", value_name = "DIR")]
    pub(super) data_dir: PathBuf,
}

impl DataDir {
    fn channel(&self) -> anyhow::Result<Channel> {
        Ok(channel(&self.data_dir.join(ADMIN_SOCKET))?)
    }

    pub(super) fn admin(&self) -> anyhow::Result<AdminClient> {
        Ok(AdminClient::new(Either::new(self.channel()?)))
    }

    pub(super) fn local(&self) -> anyhow::Result<LocalClient<Channel>> {
        Ok(LocalClient::new(self.channel()?))
    }

    pub(super) fn explain(&self, status: Status) -> anyhow::Error {
        let error = synod_client::wire::error(&status);
        let is_transport = error.reason == Reason::Transport;
        let error = anyhow::Error::new(error);
        if is_transport {
            return error.context(silent(&self.data_dir.join(ADMIN_SOCKET)));
        }
        error
    }
}

/// A member id: 16 hexadecimal digits.
pub(super) fn parse_member(text: &str) -> Result<u64, String> {
    let id = synod_paxos::MemberId::parse(text).filter(|id| id.0 != 0);
    id.map(|id| id.0).ok_or_else(|| "a member id has 16 hexadecimal digits; `status` shows it".to_owned())
}

/// A name for people.
pub(super) fn parse_name(text: &str) -> Result<String, synod_paxos::names::NameError> {
    synod_paxos::names::check(text).map(|()| text.to_owned())
}

/// A cluster id: a UUID.
pub(super) fn parse_cluster(text: &str) -> Result<synod_paxos::ClusterId, String> {
    let id =
        uuid::Uuid::parse_str(text).map_err(|_| "a cluster id is a UUID; `status` shows it".to_owned())?;
    Ok(synod_paxos::ClusterId(id.into_bytes()))
}

/// 32 bytes in hexadecimal.
pub(super) fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    let digest = synod_paxos::Digest::parse(text).map(|digest| digest.0);
    digest.ok_or_else(|| "a genesis digest has 64 hexadecimal digits; `status -o json` shows it".to_owned())
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(value).context("cannot print the answer")?;
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
