//! HTTP/1.1 over the socket, as little of it as the member's answers need.

use anyhow::{Context, bail};
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A connection that is used again.
pub(super) struct Http {
    stream: BufReader<UnixStream>,
}

impl Http {
    pub(super) async fn connect(socket: &Path) -> anyhow::Result<Http> {
        Ok(Http { stream: BufReader::new(UnixStream::connect(socket).await?) })
    }

    async fn send(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<usize> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: synod\r\ncontent-length: {}\r\n\r\n", body.len())
                .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                bail!("the connection ended");
            }
            let text = line.trim_end();
            if status.is_empty() {
                text.clone_into(&mut status);
            }
            if text.is_empty() {
                break;
            }
            if let Some((name, value)) = text.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.parse().context("no length")?;
            }
        }
        if !status.starts_with("HTTP/1.1 200") {
            bail!("{status}");
        }
        Ok(length)
    }

    /// A request and its whole answer.
    pub(super) async fn call(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let length = self.send(method, path, body).await?;
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    /// The first event of a stream with an entry.
    pub(super) async fn first_event(mut self, path: &str) -> anyhow::Result<()> {
        self.send("GET", path, b"").await?;
        let mut line = String::new();
        while !line.starts_with("id: ") {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                bail!("the stream ended");
            }
        }
        Ok(())
    }
}
