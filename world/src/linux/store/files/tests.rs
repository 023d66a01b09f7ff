use super::*;

/// Handles share nothing but the folder, as processes do: locks are per handle.
fn files(folder: &tempfile::TempDir) -> Files {
    Files::open(&folder.path().join("store")).expect("a folder")
}

fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> StoreErrorKind {
    outcome.expect_err("it must fail").kind
}

fn staged_count(files: &Files) -> usize {
    std::fs::read_dir(&files.staging).expect("a folder").count()
}

#[test]
fn no_update_is_lost_between_processes() {
    const WRITERS: u32 = 4;
    const UPDATES: u32 = 8;
    let folder = tempfile::tempdir().expect("a folder");
    files(&folder).create("count", &body("0")).expect("created");
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let files = files(&folder);
                let mut done = 0;
                while done < UPDATES {
                    let seen = files.get("count", &Part::All).expect("there");
                    let text = std::str::from_utf8(&seen.bytes).expect("digits");
                    let next = text.parse::<u32>().expect("digits") + 1;
                    match files.replace("count", &seen.etag, &body(&next.to_string())) {
                        Ok(_) => done += 1,
                        Err(failure) => assert_eq!(failure.kind, StoreErrorKind::Conflict),
                    }
                }
            });
        }
    });
    let last = files(&folder).get("count", &Part::All).expect("there");
    assert_eq!(last.bytes, (WRITERS * UPDATES).to_string());
}

#[test]
fn a_version_never_comes_back_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    let mut seen = vec![files.create("root", &body("a")).expect("created")];
    // Faster than clocks tick.
    for text in ["b", "a", "b", "a"] {
        let last = seen.last().expect("one was created");
        let next = files.replace("root", last, &body(text));
        let next = next.expect("nobody else writes");
        assert!(!seen.contains(&next), "{next} comes back");
        seen.push(next);
    }
    let stale = files.replace("root", &seen[0], &body("c"));
    assert_eq!(kind(stale), StoreErrorKind::Conflict);
}

#[test]
fn a_store_whose_folder_is_gone_does_not_say_that_objects_are_absent() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    let etag = files.create("nbd/vm/root", &body("a")).expect("created");
    std::fs::remove_dir_all(&files.root).expect("removed");
    // An empty mount point, say.
    std::fs::create_dir(&files.root).expect("created");
    let refused = StoreErrorKind::Refused;
    assert_eq!(kind(files.get("nbd/vm/root", &Part::All)), refused);
    assert_eq!(kind(files.create("nbd/vm/root", &body("b"))), refused);
    assert_eq!(
        kind(files.replace("nbd/vm/root", &etag, &body("b"))),
        refused
    );
    assert_eq!(kind(files.delete("nbd/vm/root")), refused);
    assert_eq!(kind(files.list("nbd/", "", 10)), refused);
}

#[test]
fn only_left_overs_of_dead_writers_are_swept() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = files(&folder);
    let living = first.stage(&body("in work"), 0).expect("staged");
    let dead = first.staging.join("left-over");
    drop(create_file(&dead));
    assert_eq!(staged_count(&first), 2);
    let second = files(&folder);
    assert!(living.path.exists() && !dead.exists());
    assert!(second.list("", "", 10).expect("listed").is_empty());
    drop(living);
    assert_eq!(staged_count(&first), 0);
}

fn create_file(path: &Path) -> OwnedFd {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).expect("created")
}

#[test]
fn nothing_stays_in_staging_after_success_or_conflict() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    let etag = files.create("a", &body("1")).expect("created");
    assert_eq!(
        kind(files.create("a", &body("2"))),
        StoreErrorKind::Conflict
    );
    files.replace("a", &etag, &body("3")).expect("replaced");
    assert_eq!(
        kind(files.replace("a", &etag, &body("4"))),
        StoreErrorKind::Conflict
    );
    assert_eq!(staged_count(&files), 0);
}

#[test]
fn keys_do_not_lead_out_of_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    for key in [
        "",
        "/",
        "/etc/x",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        ".",
        ".staging/x",
        "a\0b",
    ] {
        let refused = StoreErrorKind::Refused;
        assert_eq!(kind(files.get(key, &Part::All)), refused, "{key:?}");
        assert_eq!(kind(files.create(key, &body("x"))), refused, "{key:?}");
        assert_eq!(kind(files.delete(key)), refused, "{key:?}");
    }
    assert_eq!(kind(files.list("../", "", 10)), StoreErrorKind::Refused);
}

#[test]
fn an_object_that_is_open_stays_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    let etag = files.create("a", &body("old")).expect("created");
    let found = open_object(&files.root.join("a")).expect("there");
    files.replace("a", &etag, &body("newer")).expect("replaced");
    let bytes = read_range(&found.fd, 0, found.size).expect("readable");
    assert_eq!(&*bytes, b"old");
}

/// A name that the disk refused to keep is still seen in memory: a read-back would take it for stored.
#[test]
fn after_a_name_was_not_kept_nothing_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder);
    let etag = files.create("root", &body("1")).expect("created");
    let lost = files.persist_name(&folder.path().join("nowhere/root"));
    assert_eq!(kind(lost), StoreErrorKind::Unknown);
    assert_eq!(kind(files.get("root", &Part::All)), StoreErrorKind::Refused);
    let replaced = files.replace("root", &etag, &body("2"));
    assert_eq!(kind(replaced), StoreErrorKind::Refused);
    assert_eq!(
        kind(files.create("seg", &body("3"))),
        StoreErrorKind::Refused
    );
    assert_eq!(kind(files.list("", "", 9)), StoreErrorKind::Refused);
}
