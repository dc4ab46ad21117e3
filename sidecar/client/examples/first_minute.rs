//! The program of docs/socket.md, "The first minute".

use futures::TryStreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = synod_client::Client::connect_from_env()?;
    println!("appended at {}", log.append("hello").await?.first_index);
    let mut entries = log.subscribe_until(1, synod_client::End::Tail);
    while let Some(entry) = entries.try_next().await? {
        println!("{} {}", entry.index, String::from_utf8_lossy(&entry.payload));
    }
    Ok(())
}
