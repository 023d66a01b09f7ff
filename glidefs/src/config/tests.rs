//! Every key, every mistake.

use std::collections::BTreeMap;

use super::*;

const MANUAL: &str = include_str!("../../../docs/configuration.md");

/// The product description's sample, letter by letter.
const SAMPLE: &str = r#"# glidefs.toml
[cache]
dir = "/var/cache/glidefs"
disk_size_gb = 100.0

[storage]
url = "s3://my-bucket/vms"
encryption_password = "${GLIDEFS_PASSWORD}"

[servers.nbd]
unix_socket = "/var/run/glidefs.sock"
auto_create_size_gb = 500.0
"#;

const SMALL: &str = "[cache]\ndir = \"/c\"\n[storage]\nurl = \"file:///s\"\n";

fn environment() -> Environment {
    [
        ("GLIDEFS_PASSWORD", "correct horse"),
        ("AWS_ACCESS_KEY_ID", "AKENV"),
        ("AWS_SECRET_ACCESS_KEY", "hidden-in-env"),
    ]
    .into_iter()
    .collect()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("glidefs.toml", text, &environment())
}

fn parse_alone(text: &str) -> Result<Config, ConfigError> {
    Config::parse("glidefs.toml", text, &Environment::default())
}

/// Asserts that `SMALL` with `text` appended has exactly one problem, and that it says all this.
fn refused(text: &str, says: &[&str]) {
    let error = parse_alone(&format!("{SMALL}{text}")).expect_err(text);
    let said = error.to_string();
    assert_eq!(error.problems.len(), 1, "{said}");
    for words in says {
        assert!(said.contains(words), "{text:?}: no {words:?} in {said:?}");
    }
}

#[test]
fn the_sample_of_the_product_description_loads_as_written() {
    let config = parse(SAMPLE).expect("the sample is legal");
    assert_eq!(config.cache.dir, Path::new("/var/cache/glidefs"));
    assert_eq!(config.cache.size_bytes, 100 << 30);
    assert_eq!(config.cache.dirty_bytes_max, 50 << 30);
    assert_eq!(config.storage.url.to_string(), "s3://my-bucket/vms");
    let password = config.storage.password.expect("set");
    assert_eq!(password.reveal(), "correct horse");
    assert_eq!(config.storage.compression, Compression::Lz4);
    assert_eq!(
        config.nbd,
        NbdSettings {
            unix_socket: Some("/var/run/glidefs.sock".into()),
            address: None,
            auto_create_bytes: Some(500 << 30),
            blocks_per_batch: 25,
            sync_delay: Duration::from_secs(8),
            shared: false,
            grace: Duration::from_secs(30),
            read_wait: Duration::from_secs(900),
        }
    );
    assert_eq!(config.api.address.to_string(), "127.0.0.1:8080");
    let access = config.storage.access;
    assert_eq!(access.access_key_id.as_deref(), Some("AKENV"));
    assert_eq!(access.region.as_deref(), Some("us-east-1"));
}

#[test]
fn the_tuning_snippets_of_the_product_description_load() {
    let config = parse_alone(&format!(
        "{SMALL}[servers.nbd]\nblocks_per_batch = 10  # x\nsync_delay_ms = 2000\n"
    ))
    .expect("legal");
    assert_eq!(config.nbd.blocks_per_batch, 10);
    assert_eq!(config.nbd.sync_delay, Duration::from_secs(2));
    assert_eq!(
        config.nbd.address,
        Some(default_address(NBD_ADDRESS_DEFAULT)),
        "no listener named: the usual port"
    );
    assert_eq!(config.nbd.auto_create_bytes, None);
}

#[test]
fn the_file_wins_over_the_environment() {
    let text = format!(
        "{}\n[aws]\nendpoint = \"http://127.0.0.1:9000\"\nallow_http = true\n\
         default_region = \"eu-central-1\"\naccess_key_id = \"AKFILE\"\nsecret_access_key = \"sf\"\n",
        SAMPLE
    );
    let config = parse(&text).expect("legal");
    let wanted = StoreAccess {
        endpoint: Some("http://127.0.0.1:9000".into()),
        region: Some("eu-central-1".into()),
        access_key_id: Some("AKFILE".into()),
        secret_access_key: Some(Secret::new("sf".into())),
        session_token: None,
        files: KeyFiles::default(),
        allow_http: true,
    };
    assert_eq!(config.storage.access, wanted);
}

#[test]
fn the_usual_variables_stand_in_for_the_aws_section() {
    let environment: Environment = [
        ("AWS_ENDPOINT_URL", "http://s3:9000"),
        ("AWS_ENDPOINT_URL_S3", "http://s3-only:9000"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_DEFAULT_REGION", "r1"),
        ("AWS_SESSION_TOKEN", "tok"),
        ("HOME", "/root"),
    ]
    .into_iter()
    .collect();
    let text = "[cache]\ndir = \"/c\"\n[storage]\nurl = \"s3://b/p\"\n";
    let config = Config::parse("x", text, &environment).expect("legal");
    let wanted = StoreAccess {
        endpoint: Some("http://s3-only:9000".into()),
        region: Some("r1".into()),
        session_token: Some(Secret::new("tok".into())),
        allow_http: true,
        ..StoreAccess::default()
    };
    assert_eq!(config.storage.access, wanted);
}

#[test]
fn unknown_keys_are_refused_with_line_and_suggestion() {
    refused(
        "[server]\nx = 1\n",
        &["glidefs.toml:5", "`server`", "unknown key", "`servers`"],
    );
    refused(
        "[servers.nbd]\nunix_sockt = \"/x\"\n",
        &["glidefs.toml:6", "did you mean `servers.nbd.unix_socket`?"],
    );
    refused(
        "[servers.api]\nsync_delay_ms = 1\n",
        &["did you mean `servers.nbd.sync_delay_ms`?"],
    );
    refused("[zzzzz]\n", &["`zzzzz`", "glidefs init"]);
    refused(
        "disk_size_gb = 5\n",
        &["did you mean `cache.disk_size_gb`?"],
    );
}

#[test]
fn every_bad_value_is_an_error_that_names_key_and_cure() {
    let cache = |line: &str| {
        let text = format!("[storage]\nurl = \"file:///s\"\n[cache]\ndir = \"/c\"\n{line}\n");
        parse_alone(&text).expect_err(line).to_string()
    };
    assert!(cache("disk_size_gb = 0").contains("`cache.disk_size_gb`: is out of range"));
    assert!(cache("disk_size_gb = -1.5").contains("out of range"));
    assert!(cache("disk_size_gb = nan").contains("out of range"));
    assert!(cache("disk_size_gb = inf").contains("out of range"));
    assert!(cache("disk_size_gb = \"10\"").contains("must be a number"));
    assert!(cache("disk_size_gb = 8\ndirty_max_gb = 7").contains("give at most 6"));

    let nbd = |line: &str, says: &[&str]| refused(&format!("[servers.nbd]\n{line}\n"), says);
    nbd("blocks_per_batch = 0", &["from 1 to 1000"]);
    nbd("blocks_per_batch = 2.5", &["must be a whole number"]);
    nbd("blocks_per_batch = 99999999999999999999999999", &["range"]);
    nbd("sync_delay_ms = -1", &["`servers.nbd.sync_delay_ms`"]);
    nbd("shared = \"yes\"", &["must be true or false"]);
    nbd("unix_socket = 5", &["must be text", "quotes"]);
    nbd(
        &format!("unix_socket = \"/{}\"", "x".repeat(107)),
        &["108 bytes long", "shorter"],
    );
    nbd("address = \"nowhere\"", &["address with a port"]);
    nbd("auto_create_size_gb = 0.0", &["range"]);
    nbd("grace_s = 100000", &["from 0 to 86400"]);
    nbd("unix_socket = \"${NOT_THERE}\"", &["NOT_THERE is not set"]);

    refused("[log]\nformat = \"xml\"\n", &["`log.format`", "\"json\""]);
    refused("[log]\nlevel = \"glidefs=loud\"\n", &["`log.level`"]);
    refused("[servers.api]\naddress = \"8080\"\n", &["127.0.0.1:8080"]);
    refused("[servers.api]\ntoken = \"\"\n", &["is empty"]);
    refused("compression = \"gzip\"\n", &["`storage.compression`"]);
    refused("encryption_password = \"\"\n", &["is empty"]);
    refused("servers = 5\n", &["unknown key"]);
}

#[test]
fn a_missing_section_is_named_and_all_problems_come_at_once() {
    let error = parse_alone("[servers.nbd]\nshard = true\n").expect_err("lacks everything");
    let said = error.to_string();
    assert_eq!(error.problems.len(), 3, "{said}");
    assert!(said.starts_with("glidefs.toml:2: `servers.nbd.shard`"));
    assert!(said.contains("`cache.dir`: is missing"));
    assert!(said.contains("`storage.url`: is missing"));
}

#[test]
fn store_and_endpoint_mistakes_are_explained() {
    let s3 = |aws: &str| {
        let text = format!("[cache]\ndir = \"/c\"\n[storage]\nurl = \"s3://b\"\n[aws]\n{aws}\n");
        parse_alone(&text).expect_err(aws).to_string()
    };
    assert!(s3("endpoint = \"http://127.0.0.1:9000\"").contains("allow_http = true"));
    assert!(s3("endpoint = \"127.0.0.1:9000\"").contains("no http or https URL"));
    assert!(s3("access_key_id = \"a\"").contains("without its other half"));
    assert!(s3("secret_access_key = \"b\"").contains("`aws.secret_access_key`"));
    let text = "[cache]\ndir = \"/c\"\n[storage]\nurl = \"ftp://b\"\n";
    let said = parse_alone(text).expect_err("ftp").to_string();
    assert!(said.starts_with("glidefs.toml:4: `storage.url`: has a scheme"));
}

#[test]
fn secrets_are_in_no_message_and_no_debug_text() {
    let broken = "[storage]\nencryption_password = \"tell-nobody\" oops\n";
    let said = parse_alone(broken).expect_err("not TOML").to_string();
    assert!(said.starts_with("glidefs.toml:2: not TOML"), "{said}");
    assert!(!said.contains("tell-nobody"));

    let typed = "encryption_password = 12345678\n";
    let said = parse_alone(&format!("{SMALL}{typed}")).expect_err("a number");
    assert!(!said.to_string().contains("12345678"));

    let config = parse(&format!("{SAMPLE}[servers.api]\ntoken = \"tok-tok\"\n")).expect("legal");
    let shown = format!("{config:?} {:?}", environment());
    for secret in ["correct horse", "hidden-in-env", "tok-tok"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

/// `/run/s/public` can be read by everybody, `/run/s/none` by nobody.
fn secret_file(path: &Path) -> Result<SecretFile, (String, String)> {
    match path.to_str() {
        Some("/run/s/none") => Err(("cannot be read".into(), "give another".into())),
        Some(path) => Ok(SecretFile {
            secret: Secret::new(format!("content of {path}")),
            is_public: path.ends_with("public"),
        }),
        None => unreachable!("the tests name files in ASCII"),
    }
}

#[test]
fn a_secret_may_be_in_a_file_of_its_own() {
    let environment = [("CREDENTIALS_DIRECTORY", "/run/s")];
    let environment: Environment = environment.into_iter().collect();
    let environment = environment.with_files(secret_file);
    let parse = |text: &str| Config::parse("t", &format!("{SMALL}{text}"), &environment);
    let text = "encryption_password_file = \"${CREDENTIALS_DIRECTORY}/password\"\n\
                [servers.api]\ntoken_file = \"/run/s/public\"\n\
                [aws]\naccess_key_id = \"AK\"\nsecret_access_key_file = \"/run/s/key\"\n";
    let config = parse(text).expect("legal");
    let shown = format!("{config:?}");
    assert!(!shown.contains("content of"), "{shown}");
    let revealed = |secret: Option<Secret>| secret.expect("set").reveal().to_owned();
    assert_eq!(
        revealed(config.storage.password.clone()),
        "content of /run/s/password"
    );
    assert_eq!(
        revealed(config.api.token.clone()),
        "content of /run/s/public"
    );
    let access = config.storage.access.clone();
    assert_eq!(revealed(access.secret_access_key), "content of /run/s/key");
    let files = KeyFiles {
        secret_access_key: Some("/run/s/key".into()),
        ..KeyFiles::default()
    };
    assert_eq!(access.files, files, "where it may be renewed");
    let warned = config.warnings().join("\n");
    assert!(
        warned.contains("token_file") && warned.contains("chmod 600"),
        "{warned}"
    );
    assert!(!warned.contains("encryption_password_file"), "{warned}");

    for (text, says) in [
        (
            "encryption_password_file = \"/run/s/none\"\n",
            "cannot be read; give another",
        ),
        (
            "encryption_password_file = \"/run/s/a\"\nencryption_password = \"b\"\n",
            "stands beside `storage.encryption_password`",
        ),
        (
            "[aws]\nsecret_access_key_file = \"/run/s/key\"\n",
            "stands without its other half",
        ),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(
            error.contains(says) && !error.contains("content of"),
            "{error}"
        );
    }
}

#[test]
fn keys_of_a_role_are_in_files_and_belong_together() {
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKENV"),
        ("AWS_SECRET_ACCESS_KEY", "hidden-in-env"),
        ("AWS_SESSION_TOKEN", "of-other-keys"),
    ];
    let environment: Environment = environment.into_iter().collect();
    let environment = environment.with_files(secret_file);
    let parse = |aws: &str| Config::parse("t", &format!("{SMALL}[aws]\n{aws}"), &environment);
    let pair = "access_key_id_file = \"/run/s/id\"\nsecret_access_key_file = \"/run/s/key\"\n";
    let token = "session_token_file = \"/run/s/token\"\n";

    let access = parse(&format!("{pair}{token}")).expect("legal");
    let access = access.storage.access;
    let revealed = |secret: Option<Secret>| secret.map(|it| it.reveal().to_owned());
    assert_eq!(
        access.access_key_id.as_deref(),
        Some("content of /run/s/id")
    );
    let secret = revealed(access.secret_access_key);
    assert_eq!(secret.as_deref(), Some("content of /run/s/key"));
    let found = revealed(access.session_token);
    assert_eq!(found.as_deref(), Some("content of /run/s/token"));
    let files = KeyFiles {
        access_key_id: Some("/run/s/id".into()),
        secret_access_key: Some("/run/s/key".into()),
        session_token: Some("/run/s/token".into()),
    };
    assert_eq!(access.files, files);

    let access = parse(pair).expect("legal").storage.access;
    assert_eq!(access.session_token, None, "the environment's is of others");
    let access = parse("").expect("legal").storage.access;
    assert!(access.files.is_empty() && access.session_token.is_some());

    for (aws, says) in [
        (token.to_owned(), "stands without the keys that it is of"),
        (
            format!("access_key_id_file = \"/run/s/id\"\n{token}"),
            "`aws.access_key_id`: stands without its other half",
        ),
        (
            format!("access_key_id = \"AK\"\n{pair}"),
            "stands beside `aws.access_key_id`",
        ),
        (
            pair.replace("/run/s/key", "/run/s/none"),
            "`aws.secret_access_key_file`: cannot be read; give another",
        ),
    ] {
        let error = parse(&aws).expect_err(&aws);
        let said = error.to_string();
        assert_eq!(error.problems.len(), 1, "{said}");
        assert!(
            said.contains(says) && !said.contains("content of"),
            "{said}"
        );
    }
}

/// A configuration by section and key.
type Table = BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>;

/// With some keys of the store, each of this value.
fn table(keys: &[&'static str], value: &'static str) -> Table {
    let dir = [("dir", "\"/c\""), ("dirty_max_gb", "5.0")];
    let nbd = [("unix_socket", "\"/n\""), ("address", "\"127.0.0.1:3\"")];
    BTreeMap::from([
        ("cache", BTreeMap::from(dir)),
        ("storage", BTreeMap::from([("url", "\"file:///s\"")])),
        ("servers.nbd", BTreeMap::from(nbd)),
        ("aws", keys.iter().map(|key| (*key, value)).collect()),
    ])
}

fn parse_table(table: &Table) -> Config {
    let mut text = String::new();
    for (section, keys) in table {
        text.push_str(&format!("[{section}]\n"));
        for (key, value) in keys {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let environment = environment().with_files(secret_file);
    Config::parse("t", &text, &environment).expect(&text)
}

/// Each key that exists, changed alone.
const CHANGES: [(&str, &str, &str); 28] = [
    ("cache", "dir", "\"/d\""),
    ("cache", "disk_size_gb", "11.0"),
    ("cache", "dirty_max_gb", "4.0"),
    ("storage", "url", "\"file:///t\""),
    ("storage", "encryption_password", "\"new\""),
    ("storage", "encryption_password_file", "\"/run/s/p\""),
    ("storage", "compression", "\"zstd\""),
    ("servers.nbd", "unix_socket", "\"/s\""),
    ("servers.nbd", "address", "\"127.0.0.1:1\""),
    ("servers.nbd", "auto_create_size_gb", "7.0"),
    ("servers.nbd", "blocks_per_batch", "26"),
    ("servers.nbd", "sync_delay_ms", "8001"),
    ("servers.nbd", "shared", "true"),
    ("servers.nbd", "grace_s", "31"),
    ("servers.nbd", "read_wait_s", "901"),
    ("servers.api", "address", "\"127.0.0.1:2\""),
    ("servers.api", "token", "\"new\""),
    ("servers.api", "token_file", "\"/run/s/t\""),
    ("aws", "endpoint", "\"https://s3\""),
    ("aws", "default_region", "\"r\""),
    ("aws", "access_key_id", "\"new\""),
    ("aws", "secret_access_key", "\"new\""),
    ("aws", "access_key_id_file", "\"/run/s/new\""),
    ("aws", "secret_access_key_file", "\"/run/s/new\""),
    ("aws", "session_token_file", "\"/run/s/new\""),
    ("aws", "allow_http", "true"),
    ("log", "format", "\"json\""),
    ("log", "level", "\"warn\""),
];

#[test]
fn every_setting_that_differs_is_named_and_no_other() {
    let environment = environment();
    let mut source = Source::parse("t", TEMPLATE, &environment).expect("TOML");
    read(&mut source, "t", &environment).expect("complete");
    let tried = CHANGES.map(|(section, key, _)| format!("{section}.{key}"));
    for key in source.asked() {
        assert!(tried.iter().any(|it| it == key), "{key} is not compared");
    }
    for (section, key, value) in CHANGES {
        // A half of a pair is changed, and never stands alone.
        let before = match (section, key.ends_with("_file")) {
            ("aws", true) => {
                let files = ["access_key_id_file", "secret_access_key_file"];
                table(&files, "\"/run/s/old\"")
            }
            ("aws", false) => table(&["access_key_id", "secret_access_key"], "\"old\""),
            _ => table(&[], ""),
        };
        let mut after = before.clone();
        after.entry(section).or_default().insert(key, value);
        let (running, found) = (parse_table(&before), parse_table(&after));
        assert_eq!(running.changed_keys(&running), [""; 0]);
        let named = format!("{section}.{key}");
        // A secret is the same one wherever it stands.
        let named = match named.strip_suffix("_file") {
            Some(secret) if section != "aws" => secret.to_owned(),
            _ => named,
        };
        assert_eq!(running.changed_keys(&found), [named.as_str()]);
        assert_eq!(found.changed_keys(&running), [named.as_str()]);
    }
}

#[test]
fn keys_of_the_store_that_were_renewed_in_their_files_are_no_difference() {
    let files = [
        "access_key_id_file",
        "secret_access_key_file",
        "session_token_file",
    ];
    let mut running = parse_table(&table(&files, "\"/run/s/it\""));
    let mut found = running.clone();
    let access = &mut found.storage.access;
    access.access_key_id = Some("AKNEW".to_owned());
    access.secret_access_key = Some(Secret::new("renewed".to_owned()));
    access.session_token = Some(Secret::new("renewed".to_owned()));
    assert_eq!(running.changed_keys(&found), [""; 0]);
    // Without files they are what only a restart would use.
    for config in [&mut running, &mut found] {
        config.storage.access.files = KeyFiles::default();
    }
    let expected = ["aws.access_key_id", "aws.secret_access_key"];
    assert_eq!(running.changed_keys(&found), expected);
}

#[test]
fn the_template_and_the_manual_show_every_key() {
    let environment = environment();
    let mut source = Source::parse("t", TEMPLATE, &environment).expect("TOML");
    let config = read(&mut source, "t", &environment).expect("complete");
    let asked = source.asked();
    source.finish().expect("no problem");
    for key in asked {
        let (section, last) = key.rsplit_once('.').expect("all keys are in sections");
        let body = TEMPLATE
            .split_once(&format!("[{section}]"))
            .expect(section)
            .1;
        let body = body.split_once("\n[").map_or(body, |(body, _)| body);
        assert!(body.contains(&format!("{last} = ")), "{key} is not shown");
        let chapter = MANUAL
            .split_once(&format!("`[{section}]`:"))
            .expect(section);
        let chapter = chapter
            .1
            .split("\n`[")
            .next()
            .expect("split gives one part");
        assert!(
            chapter.contains(&format!("`{last}`")),
            "{key} is in no manual"
        );
    }
    assert_eq!(config.nbd.auto_create_bytes, Some(10 << 30));
}

#[test]
fn the_defaults_that_the_template_shows_are_the_defaults() {
    let is_setting = |line: &str| {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let shown: String = TEMPLATE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) && !rest.contains(['$', ':']) => rest,
            Some(rest) if rest.starts_with("address = ") => rest,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let mut with_examples = Config::parse("t", &shown, &Environment::default()).expect("legal");
    with_examples.nbd.address = None; // the one example among them
    let plain = Config::parse("t", TEMPLATE, &Environment::default()).expect("legal");
    assert_eq!(with_examples, plain);
}

#[test]
fn the_embedded_default_needs_nothing_and_stays_in_its_folder() {
    let here = Path::new("/home/someone");
    let config = Config::embedded(here, &Environment::default());
    let data = here.join(EMBEDDED_DIR);
    assert!(config.cache.dir.starts_with(&data));
    assert_eq!(config.storage.url.folder(), Some(data.join("store")));
    let socket = config.nbd.unix_socket.expect("a unix socket");
    assert!(socket.starts_with(&data));
    assert_eq!(config.nbd.auto_create_bytes, Some(10 << 30));

    let deep = here.join("x".repeat(200));
    let config = Config::embedded(&deep, &Environment::default());
    let socket = config.nbd.unix_socket.expect("a unix socket");
    assert!(socket.as_os_str().len() <= UNIX_SOCKET_PATH_BYTES_MAX);
}

#[test]
fn open_doors_are_warned_about() {
    assert_eq!(parse(SAMPLE).expect("legal").warnings(), [""; 0]);
    let text = "[cache]\ndir = \"/c\"\n[storage]\nurl = \"memory://\"\n\
                [servers.nbd]\naddress = \"0.0.0.0:10809\"\n[servers.api]\naddress = \"[::]:80\"\n";
    let warnings = parse_alone(text).expect("legal").warnings();
    assert_eq!(warnings.len(), 3);
    assert!(warnings[0].contains("servers.nbd.address"));
    assert!(warnings[1].contains("servers.api.token"));
    assert!(warnings[2].contains("memory://"));
}

#[test]
fn gib_are_gib_and_sizes_are_whole_mebibytes() {
    assert_eq!(bytes_from_gib(1.0), 1 << 30);
    assert_eq!(bytes_from_gib(0.1) % (1 << 20), 0);
    assert!(bytes_from_gib(0.1) >= (1 << 30) / 10);
    assert_eq!(bytes_from_gib(f64::INFINITY), 1 << 53);
}
