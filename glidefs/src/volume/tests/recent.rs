//! What was written last, for who wants it first.

use super::*;

#[test]
fn the_newest_comes_first_and_each_frame_that_is_to_be_seen_once() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let volume = node.create("a");
        for stamp in 1..=80 {
            node.sync(&volume, vec![data(stamp % 40 * 32, &[stamp])]);
            node.compact(&volume);
        }
        let there = Node::new(2, &store, password);
        let volume = there.open("a").expect("opens");
        let before = store.counts().gets;
        let found = there.world.run(async move {
            let (mut found, mut recent) = (Vec::new(), volume.recent());
            while let Some(frames) = recent.more().await.expect("readable") {
                let mut rest = &frames[..];
                while !rest.is_empty() {
                    let (batch, next) = rest.split_at(together(rest));
                    rest = next;
                    let span = volume.span(batch).await.expect("there");
                    for frame in batch {
                        let plain = volume.frame_of(batch, &span, frame).await;
                        found.push((frame.pages.start.0, plain.expect("whole")));
                    }
                }
            }
            assert!(recent.leaves() > 0, "a part of the map is folded");
            found
        });
        assert_eq!(found[0].0, 0, "of the last write");
        assert_eq!(found.len(), 40);
        for (start, plain) in found {
            let stamp = match start / 32 {
                0 => 80,
                behind => 40 + behind,
            };
            assert!(plain == page(stamp), "page {start}");
        }
        assert!(
            store.counts().gets - before < 60,
            "a request for each at most"
        );
    }
}
