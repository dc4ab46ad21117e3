//! Reads of a disk that fail for a while without a damaged byte: no member ends over an old row, none is called damaged for
//! good, and what is asked for is answered in the end (docs: reliability.md, fault 4).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Cluster, Member, preload, until};
use futures::TryStreamExt;
use std::fs;
use std::path::PathBuf;
use synod_client::{AppendOptions, Client, Consistency, ReadOptions};

const ENTRIES: usize = 40;

/// While the file `FAIL` is there, reads of any file whose name ends as its second word fail with its first as `errno`.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(int fd) {
    int number = 0;
    char wanted[256], link[64], name[4096];
    FILE *told = fopen(FAIL, "r");
    if (!told) return 0;
    int read = fscanf(told, "%d %255s", &number, wanted);
    fclose(told);
    if (read != 2) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    size_t end = strlen(wanted);
    if ((size_t)length < end || strcmp(name + length - end, wanted)) return 0;
    FILE *met = fopen(MET, "a");
    if (met) { fputc('.', met); fclose(met); }
    errno = number;
    return 1;
}
ssize_t pread64(int fd, void *to, size_t size, off_t at) {
    return fails(fd) ? -1 : syscall(SYS_pread64, fd, to, size, at);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) { return pread64(fd, to, size, at); }
ssize_t read(int fd, void *to, size_t size) {
    return fails(fd) ? -1 : syscall(SYS_read, fd, to, size);
}
"#;

/// The reads of a member that it wraps.
struct Reads {
    wrapper: Vec<String>,
    fail: PathBuf,
    met: PathBuf,
}

impl Reads {
    fn new(member: &Member) -> Reads {
        let dir = member.data_dir.parent().unwrap();
        let [library, fail, met] =
            ["reads.so", "fail", "met"].map(|name| dir.join(format!("{}-{name}", member.name)));
        let wrapper = preload::wrapper(SOURCE, &library, &[("FAIL", &fail), ("MET", &met)]);
        Reads { wrapper, fail, met }
    }

    /// From now on reads of the member's oldest segment fail.
    fn fail(&self, member: &Member, errno: i32) {
        let entries = fs::read_dir(member.data_dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|e| e == "redb")).collect();
        segments.sort();
        assert!(segments.len() > 1, "{segments:?}: not more than one segment");
        let name = segments[0].file_name().unwrap().to_str().unwrap();
        // Whole at once: the process reads it at any time.
        let written = self.fail.with_extension("new");
        fs::write(&written, format!("{errno} {}/log/{name}", member.data_dir.display())).unwrap();
        fs::rename(&written, &self.fail).unwrap();
    }

    fn mend(&self) {
        fs::remove_file(&self.fail).unwrap();
    }

    fn met(&self) -> u64 {
        fs::metadata(&self.met).map_or(0, |meta| meta.len())
    }
}

fn payload(number: usize) -> Bytes {
    format!("payload {number:04} ").repeat(50_000).into()
}

async fn append_all(client: &Client) {
    let patient = || AppendOptions { timeout: common::PATIENCE, ..AppendOptions::default() };
    for number in 0..ENTRIES {
        client.append_with(vec![payload(number)], patient()).await.unwrap();
    }
}

/// All entries as a member's own disk has them.
async fn read_all(member: &Member) -> Result<usize, String> {
    let options = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
    let entries: Result<Vec<_>, _> = member.client().read(1, options).try_collect().await;
    let entries = entries.map_err(|error| error.to_string())?;
    assert!(entries.iter().enumerate().all(|(number, entry)| entry.payload == payload(number)));
    Ok(entries.len())
}

async fn reads_all(member: &Member) {
    until("a read of all entries", || async {
        match read_all(member).await {
            Ok(ENTRIES) => Ok(()),
            other => Err((other, member.last_words())),
        }
    })
    .await;
}

async fn failing(errno: i32) {
    let said = [(); 3].map(|()| tempfile::NamedTempFile::new().unwrap());
    let mut cluster = Cluster::empty(3).await;
    let mut reads = Vec::new();
    for (member, said) in cluster.members.iter_mut().zip(&said) {
        member.kill();
        let its = Reads::new(member);
        member.wrapper.clone_from(&its.wrapper);
        member.said = Some(said.path().to_owned());
        // The scrubber meets the failing reads, too.
        member.extra = ["--scrub-every", "1", "--scrub-rate", "1000"].map(str::to_owned).to_vec();
        member.start();
        reads.push(its);
    }
    cluster.initialize().await;
    let leader = cluster.leader().await;
    let (victim, behind) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[behind].ready().await;
    cluster.members[behind].kill();
    append_all(&cluster.members[leader].client()).await;
    reads_all(&cluster.members[victim]).await;
    // Whomever the member that comes back asks, and the one that a client reads at.
    for at in [leader, victim] {
        reads[at].fail(&cluster.members[at], errno);
    }
    cluster.members[behind].start();
    let attempt = read_all(&cluster.members[victim]).await;
    println!("errno {errno}: a read at that member while its disk fails: {attempt:?}");
    until("reads that fail", || async {
        let met = [leader, victim].map(|at| reads[at].met());
        if met.iter().all(|met| *met > 0) { Ok(()) } else { Err(met) }
    })
    .await;
    cluster.members[leader].client().append_with(vec![Bytes::new()], AppendOptions::default()).await.unwrap();
    for at in [leader, victim] {
        reads[at].mend();
    }
    for at in [leader, victim, behind] {
        let member = &mut cluster.members[at];
        assert!(!member.has_ended(), "{} has ended: {:?}", member.name, member.last_words());
        until("a read of all entries", || async {
            let options = ReadOptions { consistency: Consistency::Sequential, ..ReadOptions::default() };
            let entries: Result<Vec<_>, _> = member.client().read(1, options).try_collect().await;
            match entries {
                Ok(entries) if entries.len() == ENTRIES + 1 => Ok(()),
                other => Err((other.map(|entries| entries.len()), member.last_words())),
            }
        })
        .await;
        let unhealed = member.metric("synod_rows_unhealed");
        println!("errno {errno}: {} damaged {}", member.name, member.metric("synod_rows_damaged_total"));
        assert_eq!(unhealed, 0);
    }
    for at in [leader, victim, behind] {
        assert!(!cluster.members[at].has_ended(), "{:?}", cluster.members[at].last_words());
    }
}

/// A disk that answers `EIO` for a while.
#[tokio::test(flavor = "multi_thread")]
async fn an_input_output_error_of_an_old_segment_ends_no_member() {
    failing(5).await;
}

/// A kernel that is short of memory for a while: `ENOMEM`.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_for_which_there_is_no_memory_ends_no_member() {
    failing(12).await;
}
