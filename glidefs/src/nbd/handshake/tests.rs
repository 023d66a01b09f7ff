use proptest::prelude::*;

use super::*;

fn modern() -> Handshake {
    Handshake::begin([0, 0, 0, 3]).expect("these flags are known")
}

fn structured() -> Handshake {
    let mut handshake = modern();
    let action = handshake.option(option::STRUCTURED_REPLY, Some(&[]));
    assert_eq!(replies(action), [(reply::ACK, vec![])]);
    handshake
}

/// Kinds and data of the replies that an action sends.
fn replies(action: Result<Action, Violation>) -> Vec<(u32, Vec<u8>)> {
    let (Action::Reply(bytes) | Action::Leave(bytes)) = action.expect("no violation") else {
        panic!("an action that sends nothing by itself");
    };
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut cursor = Cursor::new(bytes);
    let mut replies = Vec::new();
    while !cursor.is_empty() {
        assert_eq!(cursor.u64(), Some(wire::OPTION_REPLY_MAGIC));
        cursor.u32().expect("the option");
        let kind = cursor.u32().expect("the kind");
        let length = usize::try_from(cursor.u32().expect("the length")).expect("64 bits");
        replies.push((kind, cursor.bytes(length).expect("the data").to_vec()));
    }
    replies
}

fn text(action: Result<Action, Violation>) -> (u32, String) {
    let mut replies = replies(action);
    assert_eq!(replies.len(), 1);
    let (kind, data) = replies.remove(0);
    assert!(reply::is_error(kind));
    (kind, String::from_utf8(data).expect("a text"))
}

fn name_and(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    wire::push_string(&mut data, name);
    data.extend_from_slice(rest);
    data
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("a few");
    let mut data = name_and(name, &count.to_be_bytes());
    for query in queries {
        wire::push_string(&mut data, query);
    }
    data
}

const LOOK: Look = Look {
    size_bytes: 1 << 30,
    access: Access::ReadWrite,
};

#[test]
fn the_greeting_is_fixed_newstyle_without_zeroes() {
    assert_eq!(&Handshake::greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let begun = Handshake::begin([0, 0, 0, 4]);
    assert_eq!(begun.err(), Some(Violation::ClientFlags(4)));
}

#[test]
fn an_old_client_may_only_name_its_export() {
    let mut old = Handshake::begin([0; 4]).expect("no flags are fine");
    assert_eq!(
        old.option(option::EXPORT_NAME, Some(b"disk")),
        Ok(Action::ExportName("disk".to_owned()))
    );
    assert_eq!(old.old_answer(LOOK).len(), 8 + 2 + 124);
    let listed = old.option(option::LIST, Some(&[]));
    assert_eq!(listed, Err(Violation::OldClient(option::LIST)));
}

#[test]
fn export_name_answers_with_size_and_flags() {
    let answer = modern().old_answer(LOOK);
    let flags = 0b1101_0110_1101_u16;
    assert_eq!(answer[..8], LOOK.size_bytes.to_be_bytes());
    assert_eq!(answer[8..], flags.to_be_bytes());
}

#[test]
fn export_name_cannot_be_refused_in_words() {
    for name in [
        Some(&b""[..]),
        Some(&[0xff]),
        Some(&[b'x'; wire::STRING_BYTES_MAX + 1]),
        None,
    ] {
        let outcome = modern().option(option::EXPORT_NAME, name);
        assert!(matches!(outcome, Err(Violation::ExportName(_))), "{name:?}");
    }
}

#[test]
fn go_asks_for_the_export_and_describes_it() {
    let data = name_and("disk", &[0, 2, 0, 1, 0, 3]);
    let mut handshake = modern();
    let Ok(Action::Go(question)) = handshake.option(option::GO, Some(&data)) else {
        panic!("GO leads to an export");
    };
    assert_eq!(question.name, "disk");
    let replies = parse(&handshake.described(&question, LOOK));
    let mut export = vec![0, 0];
    export.extend_from_slice(&LOOK.size_bytes.to_be_bytes());
    export.extend_from_slice(&0b1101_0110_1101_u16.to_be_bytes());
    assert_eq!(
        replies,
        [
            (reply::INFO, export),
            (reply::INFO, b"\0\x01disk".to_vec()),
            (reply::INFO, vec![0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]),
            (reply::ACK, vec![]),
        ]
    );
}

#[test]
fn info_without_requests_tells_no_name() {
    let data = name_and("disk", &[0, 0]);
    let mut handshake = modern();
    let Ok(Action::Info(question)) = handshake.option(option::INFO, Some(&data)) else {
        panic!("INFO leads to a look");
    };
    assert_eq!(parse(&handshake.described(&question, LOOK)).len(), 3);
}

#[test]
fn flags_follow_access_and_structured_replies() {
    let handshake = structured();
    let flags = handshake.export_flags(Access::ReadWrite);
    assert_ne!(flags & export::SEND_DF, 0);
    let flags = handshake.export_flags(Access::ReadOnly);
    assert_ne!(flags & export::READ_ONLY, 0);
    let changing = export::SEND_TRIM | export::SEND_WRITE_ZEROES | export::SEND_FAST_ZERO;
    assert_eq!(flags & changing, 0);
    assert_eq!(modern().export_flags(Access::ReadOnly) & export::SEND_DF, 0);
}

#[test]
fn a_missing_name_is_explained() {
    let (kind, text) = text(modern().option(option::GO, Some(&name_and("", &[0, 0]))));
    assert_eq!(kind, reply::ERR_UNKNOWN);
    assert!(text.contains("no export name was given"), "{text}");
}

#[test]
fn questions_that_cannot_be_read_are_invalid() {
    let too_few = name_and("disk", &[0, 2, 0, 1]);
    let too_many = name_and("disk", &[0, 0, 0, 1]);
    let too_long = name_and(&"x".repeat(4097), &[0, 0]);
    for data in [&[][..], &[0, 0, 0, 9], &too_few, &too_many, &too_long] {
        let (kind, _) = text(modern().option(option::INFO, Some(data)));
        assert_eq!(kind, reply::ERR_INVALID);
    }
}

#[test]
fn refusals_carry_their_kind_and_text() {
    let question = Question {
        option: option::GO,
        name: "disk".to_owned(),
        wants_name: false,
    };
    for (why, kind) in [
        (ConnectError::Unknown("a".to_owned()), reply::ERR_UNKNOWN),
        (ConnectError::Invalid("a".to_owned()), reply::ERR_INVALID),
        (ConnectError::Refused("a".to_owned()), reply::ERR_POLICY),
        (
            ConnectError::Unavailable("a".to_owned()),
            reply::ERR_SHUTDOWN,
        ),
    ] {
        let replies = parse(&Handshake::refused(&question, &why));
        assert_eq!(replies, [(kind, b"a".to_vec())]);
    }
    let long = ConnectError::Refused("x".repeat(9999));
    let replies = parse(&Handshake::refused(&question, &long));
    assert_eq!(replies[0].1.len(), wire::STRING_BYTES_MAX);
}

#[test]
fn what_is_not_spoken_is_unsupported() {
    for kind in [option::STARTTLS, option::EXTENDED_HEADERS, 4, 12, u32::MAX] {
        let (reply, _) = text(modern().option(kind, Some(b"whatever")));
        assert_eq!(reply, reply::ERR_UNSUP, "option {kind}");
    }
}

#[test]
fn data_where_none_belongs_is_invalid_and_too_much_is_too_big() {
    for kind in [option::LIST, option::STRUCTURED_REPLY] {
        let (reply, _) = text(modern().option(kind, Some(b"x")));
        assert_eq!(reply, reply::ERR_INVALID);
    }
    let (reply, _) = text(modern().option(option::GO, None));
    assert_eq!(reply, reply::ERR_TOO_BIG);
}

#[test]
fn abort_is_acknowledged() {
    let action = modern().option(option::ABORT, Some(&[]));
    assert!(matches!(action, Ok(Action::Leave(_))));
    assert_eq!(replies(action), [(reply::ACK, vec![])]);
}

#[test]
fn a_list_names_the_exports() {
    assert_eq!(modern().option(option::LIST, Some(&[])), Ok(Action::List));
    let names = ["a".to_owned(), "bc".to_owned()];
    assert_eq!(
        parse(&Handshake::listed(&names)),
        [
            (reply::SERVER, b"\0\0\0\x01a".to_vec()),
            (reply::SERVER, b"\0\0\0\x02bc".to_vec()),
            (reply::ACK, vec![]),
        ]
    );
    let many = vec!["x".to_owned(); NAMES_LISTED_MAX + 5];
    assert_eq!(parse(&Handshake::listed(&many)).len(), NAMES_LISTED_MAX + 1);
}

#[test]
fn contexts_are_listed_by_name_and_by_namespace() {
    let context = (reply::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec());
    let ack = (reply::ACK, vec![]);
    for (asked, is_there) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["x:y", "base:allocation", "base:"], true),
        (&["base:other"], false),
        (&["qemu:dirty-bitmap:a"], false),
        (&["nonsense", ""], false),
    ] {
        let data = queries("disk", asked);
        let got = replies(structured().option(option::LIST_META_CONTEXT, Some(&data)));
        let expected = [context.clone(), ack.clone()];
        assert_eq!(got, expected[usize::from(!is_there)..], "{asked:?}");
    }
}

#[test]
fn a_context_is_set_for_one_export_and_only_by_its_whole_name() {
    let mut handshake = structured();
    let data = queries("disk", &["base:allocation"]);
    let got = replies(handshake.option(option::SET_META_CONTEXT, Some(&data)));
    let context = (reply::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec());
    assert_eq!(got, [context, (reply::ACK, vec![])]);
    assert!(handshake.features("disk").allocation);
    assert!(!handshake.features("other").allocation);
    // Each set replaces the last, also if it sets nothing or cannot be read.
    for data in [queries("disk", &["base:"]), queries("disk", &[]), vec![1]] {
        let mut handshake = structured();
        let first = queries("disk", &["base:allocation"]);
        for data in [&first, &data] {
            let action = handshake.option(option::SET_META_CONTEXT, Some(data));
            assert!(matches!(action, Ok(Action::Reply(_))));
        }
        assert!(!handshake.features("disk").allocation);
    }
}

#[test]
fn contexts_need_structured_replies() {
    let data = queries("disk", &["base:allocation"]);
    let (kind, _) = text(modern().option(option::SET_META_CONTEXT, Some(&data)));
    assert_eq!(kind, reply::ERR_INVALID);
}

#[test]
fn the_number_of_options_is_bounded() {
    let mut handshake = modern();
    for _ in 0..OPTIONS_MAX {
        handshake.option(99, Some(&[])).expect("within the bound");
    }
    assert_eq!(
        handshake.option(99, Some(&[])),
        Err(Violation::TooManyOptions(OPTIONS_MAX))
    );
}

proptest! {
    #[test]
    fn options_of_any_kind_are_answered(
        options in prop::collection::vec((0..12_u32, prop::collection::vec(0..6_u8, 0..40)), 0..20)
    ) {
        let mut handshake = structured();
        for (kind, data) in options {
            // Small bytes make lengths and counts that are sometimes right.
            match handshake.option(kind, Some(&data)) {
                Ok(Action::Reply(bytes) | Action::Leave(bytes)) => drop(parse(&bytes)),
                Ok(_) | Err(Violation::ExportName(_)) => {}
                Err(violation) => prop_assert!(false, "{violation}"),
            }
        }
    }
}
