//! Open files: those of [`synod_storage::descriptors`], and waiting for one on a runtime.

use std::io;
use synod_storage::descriptors::{PAUSE, told};

pub use synod_storage::descriptors::{count_wait, for_connections, is_shortage, limit, raise, wait, waited};

/// Runs `open` until it does not fail for want of a descriptor, on a runtime.
///
/// # Errors
/// Whatever else `open` returns.
pub async fn wait_in_task<T, F: Future<Output = io::Result<T>>>(
    what: &str,
    mut open: impl FnMut() -> F,
) -> io::Result<T> {
    let mut waited = false;
    loop {
        match told(what, open().await, &mut waited) {
            Some(opened) => return opened,
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}
