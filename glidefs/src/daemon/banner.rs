//! How to connect, printed when the server is ready.

use std::fmt::Write;
use std::net::SocketAddr;

use world::Address;

use crate::cli::bytes_text;
use crate::config::Config;

/// `doors` and `api` are the addresses in fact bound.
pub(super) fn text(config: &Config, doors: &[Address], api: SocketAddr) -> String {
    let mut text = format!(
        "GlideFS {} serves {} with a cache in {}.\n",
        env!("CARGO_PKG_VERSION"),
        config.storage.url,
        config.cache.dir.display()
    );
    for address in doors {
        let (uri, command) = ways(address);
        let _written = write!(text, "  NBD   {uri}\n        {command}\n");
    }
    let _written = writeln!(text, "  API   http://{api}/api/exports");
    match config.nbd.auto_create_bytes {
        Some(bytes) => {
            let _written = write!(
                text,
                "NAME is yours to choose: connecting creates an export of {}.",
                bytes_text(bytes)
            );
        }
        None => text.push_str(
            "NAME must exist: create it with `glidefs export create NAME SIZE_GB` \
             (`servers.nbd.auto_create_size_gb` is not set).",
        ),
    }
    text
}

/// As a URI, and as the command of the kernel's client.
fn ways(address: &Address) -> (String, String) {
    match address {
        Address::Unix(path) => {
            let path = path.display();
            (
                format!("nbd+unix:///NAME?socket={path}"),
                format!("sudo nbd-client -unix {path} /dev/nbd0 -N NAME"),
            )
        }
        Address::Tcp(address) => {
            let port = match address.port() {
                10809 => String::new(),
                port => format!(":{port}"),
            };
            let host = match address {
                SocketAddr::V4(address) => address.ip().to_string(),
                SocketAddr::V6(address) => format!("[{}]", address.ip()),
            };
            (
                format!("nbd://{host}{port}/NAME"),
                format!(
                    "sudo nbd-client {} {} /dev/nbd0 -N NAME",
                    address.ip(),
                    address.port()
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;

    #[test]
    fn each_door_is_shown_as_uri_and_as_command() {
        let config = Config::embedded(Path::new("/home/a"), &Environment::default());
        let doors = [
            Address::Unix("/run/g.sock".into()),
            Address::Tcp("127.0.0.1:10809".parse().expect("legal")),
            Address::Tcp("[::1]:7000".parse().expect("legal")),
        ];
        let text = text(&config, &doors, config.api.address);
        for line in [
            "  NBD   nbd+unix:///NAME?socket=/run/g.sock",
            "        sudo nbd-client -unix /run/g.sock /dev/nbd0 -N NAME",
            "  NBD   nbd://127.0.0.1/NAME",
            "  NBD   nbd://[::1]:7000/NAME",
            "        sudo nbd-client ::1 7000 /dev/nbd0 -N NAME",
            "  API   http://127.0.0.1:8080/api/exports",
            "NAME is yours to choose: connecting creates an export of 10 GiB.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
