//! Which members have them, whatever happens to members and disks.

use crate::common::{Cluster, Member, PATIENCE, binary, id, stderr, until};
use crate::{MIB, append, call, fetched, files, has_all, listed, state, whole};
use futures::TryStreamExt;
use std::cell::RefCell;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use synod_client::{Consistency, ReadOptions, Reason};

fn change(cluster: &Cluster, leader: usize, arguments: &[&str]) {
    let output = cluster.members[leader].admin(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
}

/// Adds one more member, and gives it a vote.
async fn join(cluster: &mut Cluster) -> usize {
    let new = cluster.add().await;
    cluster.let_join(new, 0).await;
    let new_id = id(cluster.members[new].answers().await.member);
    let leader = cluster.leader().await;
    change(cluster, leader, &["add-learner", "--member", &new_id, "--name", "n3"]);
    change(cluster, leader, &["promote", "--member", &new_id]);
    new
}

/// docs: protocol.md, "Snapshots": a new member gets the checkpoint, also where the log before it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_gets_the_checkpoint() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    change(&cluster, 0, &["settings", "--retain-entries", "16"]);
    let state = state(6, 5 * MIB);
    // Trims go to marks, which stand about every so many entries: one is before a checkpoint before long.
    let index = until("the log is trimmed", || async {
        let index = append(&client, 10).await;
        client.checkpoints().save(index, Cursor::new(state.clone())).await.unwrap();
        let first = client.consumers().list(Consistency::Sequential).await.unwrap().first_index;
        if first > 1 { Ok(index) } else { Err(first) }
    })
    .await;
    append(&client, 10).await;
    // A subscriber that comes too late is told where to begin.
    let gone = client.read(1, ReadOptions::default()).try_next().await.unwrap_err();
    assert_eq!(gone.reason, Reason::Compacted);
    assert_eq!(gone.checkpoint, Some(index));
    assert!(gone.first_index.unwrap() <= index + 1, "trimmed past the checkpoint");
    let new = join(&mut cluster).await;
    let member = &cluster.members[new];
    let (checkpoint, bytes) = fetched(member).await;
    assert!(checkpoint.index == index && bytes == state);
    has_all(member).await;
    assert!(member.metric("synod_checkpoint_bytes_taken_total") >= state.len() as u64);
    assert_eq!(member.metric("synod_checkpoints_missing"), 0);
    // From its own disk now, and what follows from its own log.
    let next: Vec<_> = member
        .client()
        .read(index + 1, ReadOptions { limit: Some(1), ..ReadOptions::default() })
        .try_collect()
        .await
        .unwrap();
    assert_eq!(next[0].index, index + 1);
}

/// docs: reliability.md, faults 4 and 5, for checkpoints: a flipped byte is never served, and healed from a peer.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_healed() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(7, 3 * MIB + 100);
    cluster.members[0].client().checkpoints().save(10, Cursor::new(state.clone())).await.unwrap();
    for member in &cluster.members {
        has_all(member).await;
    }
    let path = whole(&cluster.members[1])[0].clone();
    let good = fs::read(&path).unwrap();
    // In the first block, in the last, in the sums behind it, in the footer.
    let places = [7, 3 * MIB + 50, state.len() + 3, good.len() - 20];
    for (flips, place) in (1..).zip(places) {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[place] ^ 4], place as u64).unwrap();
        assert!(fetched(&cluster.members[1]).await.1 == state, "byte {place}");
        until("it is healed", || async {
            let healed = fs::read(&path).is_ok_and(|bytes| bytes == good);
            let damaged = cluster.members[1].metric("synod_checkpoints_damaged_total");
            if healed && damaged == flips { Ok(()) } else { Err((healed, damaged)) }
        })
        .await;
    }
    // While the member is down; the other that is asked has a flipped one, too.
    cluster.members[1].kill();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[good[MIB] ^ 1], MIB as u64).unwrap();
    let other = fs::OpenOptions::new().write(true).open(&whole(&cluster.members[2])[0]).unwrap();
    other.write_all_at(&[good[2 * MIB] ^ 1], 2 * MIB as u64).unwrap();
    cluster.members[1].start();
    assert!(fetched(&cluster.members[2]).await.1 == state);
    // The first by the member itself, though nobody asks for it.
    until("both are healed", || async {
        let same = |member: &Member| whole(member).first().is_some_and(|p| fs::read(p).unwrap() == good);
        let healed = (same(&cluster.members[1]), same(&cluster.members[2]));
        if healed == (true, true) { Ok(()) } else { Err(healed) }
    })
    .await;
}

/// docs: reliability.md, fault 1, for checkpoints: members killed at any point of a Save leave a part or the whole, and
/// the Save ends well once they are back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_members_leave_no_half() {
    let mut cluster = Cluster::of(3).await;
    append(&cluster.members[0].client(), 10).await;
    let state = state(8, 24 * MIB);
    let file = cluster.dir.path().join("state");
    fs::write(&file, &state).unwrap();
    for round in 0..6 {
        let at = &cluster.members[0];
        let mut save = binary();
        save.args(["checkpoint", "save", &(round + 1).to_string()])
            .arg(&file)
            .arg("--socket")
            .arg(&at.socket);
        let save = RefCell::new(save.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        // The member that takes it in or one that pulls it, early or late.
        let victim = if round % 2 == 0 { 0 } else { 1 };
        let at_least = [0, 1, 8 * MIB, 4 * MIB, 20 * MIB, 16 * MIB][round];
        until("so much stands", || async {
            let sizes = files(&cluster.members[victim]).into_iter().filter_map(|path| {
                let of_round = path.file_name()?.to_str()?.starts_with(&format!("{:020}", round + 1));
                of_round.then(|| fs::metadata(path).map_or(0, |file| file.len()))
            });
            let most = sizes.max().unwrap_or(0);
            let ended = save.borrow_mut().try_wait().unwrap().is_some();
            if most >= at_least as u64 || ended { Ok(()) } else { Err(most) }
        })
        .await;
        cluster.members[victim].kill();
        cluster.members[victim].start();
        let ended = save.into_inner().wait_with_output().unwrap();
        assert!(ended.status.success(), "round {round}: {}", stderr(&ended));
        for member in &cluster.members {
            let (checkpoint, bytes) = fetched(member).await;
            assert!(checkpoint.index == round as u64 + 1 && bytes == state, "round {round}");
        }
    }
    for member in &cluster.members {
        has_all(member).await;
        until("only whole ones stay", || async {
            if files(member).len() == 6 && whole(member).len() == 6 { Ok(()) } else { Err(files(member)) }
        })
        .await;
    }
}

/// docs: protocol.md, "Snapshots": the log is trimmed past only what a quorum's durable checkpoints cover. Here two of
/// three members cannot keep any: the Save is not answered, the log does not name it, and nothing more is trimmed.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_waits_for_a_quorum() {
    let cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    client.checkpoints().save(10, Cursor::new(state(9, 1_000))).await.unwrap();
    for member in &cluster.members {
        has_all(member).await;
    }
    for member in &cluster.members[1..] {
        fs::remove_dir_all(member.data_dir.join("checkpoints")).unwrap();
        fs::write(member.data_dir.join("checkpoints"), "in the way").unwrap();
    }
    change(&cluster, 0, &["settings", "--retain-entries", "16"]);
    let index = append(&client, 10).await;
    let (checkpoints, newer) = (client.checkpoints(), state(10, MIB));
    let saving = tokio::spawn(async move { checkpoints.save(index, Cursor::new(newer)).await });
    until("it is whole at one member", || async {
        if whole(&cluster.members[0]).len() == 2 { Ok(()) } else { Err(files(&cluster.members[0])) }
    })
    .await;
    for _ in 0..50 {
        append(&client, 20).await;
    }
    assert!(!saving.is_finished());
    for member in &cluster.members {
        let list = listed(member).await;
        assert_eq!(list.last().unwrap().checkpoint.index, 10, "the log names what one disk has");
        let first = member.client().consumers().list(Consistency::Linearizable).await.unwrap().first_index;
        assert!(first <= 11, "trimmed up to {first}");
    }
    // One more member is a quorum.
    fs::remove_file(cluster.members[1].data_dir.join("checkpoints")).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, saving).await.unwrap().unwrap().unwrap().index, index);
    assert_eq!(whole(&cluster.members[1]).last().unwrap().metadata().unwrap().len(), MIB as u64 + 8 + 64);
    // Trims go to marks, which stand about every so many entries: one is before a checkpoint before long.
    until("the log is trimmed up to there", || async {
        let tail = append(&client, 20).await;
        client.checkpoints().save(tail, Cursor::new(Vec::new())).await.unwrap();
        let first = client.consumers().list(Consistency::Sequential).await.unwrap().first_index;
        if first > 11 { Ok(()) } else { Err(first) }
    })
    .await;
}

/// docs: decisions/0010: the quorum is that of the members when the Save is answered, not when it began.
#[tokio::test(flavor = "multi_thread")]
async fn the_quorum_is_that_of_now() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    for member in &cluster.members[1..] {
        fs::write(member.data_dir.join("checkpoints"), "in the way").unwrap();
    }
    let checkpoints = client.checkpoints();
    let saving = tokio::spawn(async move { checkpoints.save(20, Cursor::new(state(15, 2 * MIB))).await });
    until("it is whole at one member", || async {
        if whole(&cluster.members[0]).len() == 1 { Ok(()) } else { Err(files(&cluster.members[0])) }
    })
    .await;
    let new = join(&mut cluster).await;
    until("the new member is asked, too", || async {
        if whole(&cluster.members[new]).len() == 1 { Ok(()) } else { Err(files(&cluster.members[new])) }
    })
    .await;
    // Two of four are none.
    append(&client, 20).await;
    assert!(!saving.is_finished() && listed(&cluster.members[0]).await.is_empty());
    fs::remove_file(cluster.members[2].data_dir.join("checkpoints")).unwrap();
    tokio::time::timeout(PATIENCE, saving).await.unwrap().unwrap().unwrap();
    assert_eq!(whole(&cluster.members[2]).len(), 1);
}

/// docs: reliability.md, fault 11, for checkpoints: a Save that meets a full disk leaves nothing, and the log goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_save_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new(dir.path(), "small");
    fs::create_dir(&member.data_dir).unwrap();
    fs::write(&member.peers_file, "").unwrap();
    let mount = format!("mount -t tmpfs -o size=48m tmpfs {} && exec \"$@\"", member.data_dir.display());
    // The small disk is in a mount namespace of its own, and reached through the process.
    member.wrapper = ["unshare", "-rm", "sh", "-c", &mount, "sh"].map(str::to_owned).to_vec();
    member.extra = vec!["--disk-reserve".into(), (4 * MIB).to_string()];
    member.start();
    let own = id(member.answers().await.member);
    member.data_dir = PathBuf::from(format!("/proc/{}/root{}", member.process(), member.data_dir.display()));
    let (cluster_id, founder) = (uuid::Uuid::new_v4().to_string(), format!("--member={own}=small"));
    let output = member.admin(&["initialize", "--cluster-id", &cluster_id, &founder]);
    assert!(output.status.success(), "{}", stderr(&output));
    member.ready().await;
    let client = member.client();
    append(&client, 10).await;
    let large = state(16, 60 * MIB);
    // It is not known how much comes, and it is known; appends go on meanwhile.
    for announced in [false, true] {
        let checkpoints = client.checkpoints();
        let saving = async {
            match announced {
                false => checkpoints.save_stream(5, large.as_slice()).await,
                true => checkpoints.save(5, Cursor::new(large.clone())).await,
            }
        };
        let appending = async {
            loop {
                append(&client, 1).await;
            }
        };
        let outcome = tokio::select! {
            outcome = saving => outcome,
            () = appending => unreachable!("it goes on until the Save has ended"),
        };
        let full = call(outcome);
        assert_eq!(full.reason, Reason::DiskFull);
    }
    until("nothing half stays", || async {
        if files(&member).is_empty() { Ok(()) } else { Err(files(&member)) }
    })
    .await;
    client.checkpoints().save(5, Cursor::new(large[..25 * MIB].to_vec())).await.unwrap();
    assert!(fetched(&member).await.1 == large[..25 * MIB]);
    append(&client, 10).await;
}

/// The log names the newest eight; the files of others go, at every member.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_names_no_more_is_removed() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.members[0].client();
    append(&client, 20).await;
    for index in 1..=10 {
        let through = &cluster.members[index as usize % 3];
        through.client().checkpoints().save(index, Cursor::new(state(index, 10_000))).await.unwrap();
    }
    // One that was away meanwhile, and comes back with what it had.
    cluster.members[2].kill();
    client.checkpoints().save(11, Cursor::new(state(11, 10_000))).await.unwrap();
    cluster.members[2].start();
    for member in &cluster.members {
        until("eight files stay", || async {
            let list = member.client().checkpoints().list().await.map_err(|error| error.to_string())?;
            let indexes: Vec<_> = list.iter().map(|listed| listed.checkpoint.index).collect();
            let here = list.iter().all(|listed| listed.here);
            if here && indexes == (4..=11).collect::<Vec<_>>() && files(member).len() == 8 {
                Ok(())
            } else {
                Err(format!("{indexes:?} {:?}", files(member)))
            }
        })
        .await;
    }
}
