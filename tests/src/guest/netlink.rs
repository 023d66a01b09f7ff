//! The messages by which a Linux kernel is told of NBD devices (`linux/nbd-netlink.h`). Pure.
//!
//! Only what keeps a device alive when its server goes away and comes back, which Debian's `nbd-client`
//! (3.24) cannot: for how long requests wait, and the next connection. Guests are x86-64: numbers are
//! little-endian here.

use anyhow::{Context, Result, bail, ensure};

const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const ALIGNMENT: usize = 4;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACKNOWLEDGE: u16 = 4;
/// Types of messages besides those of the families.
const KIND_ERROR: u16 = 2;
const KIND_CONTROL: u16 = 0x10;
/// The bits of an attribute's type that say how it is coded.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_VERSION: u8 = 2;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const CONTROL_GROUPS: u16 = 7;
const GROUP_ID: u16 = 2;

const NBD_FAMILY: &str = "nbd";
const NBD_VERSION: u8 = 1;
const NBD_RECONFIGURE: u8 = 3;
const NBD_LINK_DEAD: u8 = 4;
const NBD_INDEX: u16 = 1;
const NBD_SOCKETS: u16 = 7;
const NBD_DEAD_CONNECTION_SECONDS: u16 = 8;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// How this kernel numbers its NBD messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    id: u16,
    group: u32,
}

impl Family {
    /// The mask of groups to bind to, to hear of links that died.
    pub fn group_mask(&self) -> Result<u32> {
        let bit = self.group.checked_sub(1).context("group 0")?;
        let mask = 1_u32.checked_shl(bit);
        mask.with_context(|| format!("NBD's group {} does not fit into a mask", self.group))
    }
}

/// What a device is told.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// For so long requests wait for a connection that died, before they fail.
    DeadConnectionSeconds(u64),
    /// A connection in place of one that died: a file descriptor of the process that sends this.
    Socket(u32),
}

/// Asks for the family; [`family`] reads the answer.
pub fn ask_family() -> Vec<u8> {
    let name = [NBD_FAMILY.as_bytes(), &[0]].concat();
    let body = attribute(CONTROL_FAMILY_NAME, &name);
    message(KIND_CONTROL, CONTROL_GET_FAMILY, CONTROL_VERSION, &body)
}

pub fn family(answer: &[u8]) -> Result<Family> {
    let (kind, body) = open(answer)?;
    if kind == KIND_ERROR {
        let error = error_in(body)?;
        bail!("the kernel does not know NBD ({error}): is the module nbd loaded?");
    }
    let attributes = attributes_in(body.get(GENERIC_HEADER_BYTES..).unwrap_or_default())?;
    let id = find(&attributes, CONTROL_FAMILY_ID).context("a family without a number")?;
    let groups = find(&attributes, CONTROL_GROUPS).context("a family without groups")?;
    let groups = attributes_in(groups)?;
    let (_, group) = groups.first().context("a family without a group")?;
    let group = attributes_in(group)?;
    let group = find(&group, GROUP_ID).context("a group without a number")?;
    Ok(Family {
        id: u16::from_le_bytes(id.get(..2).context("a short number")?.try_into()?),
        group: number(group)?,
    })
}

/// Changes a device; [`acknowledged`] reads the answer.
pub fn reconfigure(family: Family, index: u32, change: Change) -> Vec<u8> {
    let mut body = attribute(NBD_INDEX, &index.to_le_bytes());
    let change = match change {
        Change::DeadConnectionSeconds(seconds) => {
            attribute(NBD_DEAD_CONNECTION_SECONDS, &seconds.to_le_bytes())
        }
        Change::Socket(fd) => {
            let item = attribute(SOCKET_ITEM, &attribute(SOCKET_FD, &fd.to_le_bytes()));
            attribute(NBD_SOCKETS, &item)
        }
    };
    body.extend_from_slice(&change);
    message(family.id, NBD_RECONFIGURE, NBD_VERSION, &body)
}

pub fn acknowledged(answer: &[u8]) -> Result<()> {
    let (kind, body) = open(answer)?;
    ensure!(kind == KIND_ERROR, "an answer of kind {kind}");
    let error = error_in(body)?;
    ensure!(error == 0, "the kernel refuses: error {error}");
    Ok(())
}

/// The device whose connection died, if that is what the message says.
pub fn dead_link(family: Family, heard: &[u8]) -> Result<Option<u32>> {
    let (kind, body) = open(heard)?;
    if kind != family.id || body.first() != Some(&NBD_LINK_DEAD) {
        return Ok(None);
    }
    let attributes = attributes_in(body.get(GENERIC_HEADER_BYTES..).unwrap_or_default())?;
    find(&attributes, NBD_INDEX).map(number).transpose()
}

fn message(kind: u16, command: u8, version: u8, body: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + GENERIC_HEADER_BYTES + body.len();
    let length = u32::try_from(length).expect("messages are short");
    let mut message = length.to_le_bytes().to_vec();
    message.extend_from_slice(&kind.to_le_bytes());
    message.extend_from_slice(&(FLAG_REQUEST | FLAG_ACKNOWLEDGE).to_le_bytes());
    // Sequence number and sender: one question at a time on a socket of its own needs neither.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, version, 0, 0]);
    message.extend_from_slice(body);
    message
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_HEADER_BYTES + content.len();
    let mut attribute = u16::try_from(length)
        .expect("attributes are short")
        .to_le_bytes()
        .to_vec();
    attribute.extend_from_slice(&kind.to_le_bytes());
    attribute.extend_from_slice(content);
    attribute.resize(length.next_multiple_of(ALIGNMENT), 0);
    attribute
}

/// Type and body of the first message.
fn open(bytes: &[u8]) -> Result<(u16, &[u8])> {
    let length = usize::try_from(number(bytes)?)?;
    let message = bytes.get(HEADER_BYTES..length);
    let message = message.with_context(|| format!("a message of {length} bytes"))?;
    let kind = u16::from_le_bytes(bytes[4..6].try_into()?);
    Ok((kind, message))
}

/// 0 is success; else the number of the error.
fn error_in(body: &[u8]) -> Result<u32> {
    Ok(number(body)?.wrapping_neg())
}

fn attributes_in(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>> {
    let mut attributes = Vec::new();
    while bytes.len() >= ATTRIBUTE_HEADER_BYTES {
        let length = usize::from(u16::from_le_bytes(bytes[..2].try_into()?));
        let kind = u16::from_le_bytes(bytes[2..4].try_into()?);
        let content = bytes.get(ATTRIBUTE_HEADER_BYTES..length);
        let content = content.with_context(|| format!("an attribute of {length} bytes"))?;
        attributes.push((kind & ATTRIBUTE_TYPE_MASK, content));
        bytes = bytes
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
    }
    Ok(attributes)
}

fn find<'a>(attributes: &[(u16, &'a [u8])], wanted: u16) -> Option<&'a [u8]> {
    let found = attributes.iter().find(|(kind, _)| *kind == wanted);
    found.map(|(_, content)| *content)
}

fn number(bytes: &[u8]) -> Result<u32> {
    let bytes = bytes.get(..4).context("a short number")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family { id: 31, group: 9 };

    #[test]
    fn the_family_is_read_from_the_kernels_answer() {
        let group = [
            attribute(1, b"nbd_mc_group\0"),
            attribute(GROUP_ID, &9_u32.to_le_bytes()),
        ];
        let body = [
            attribute(CONTROL_FAMILY_NAME, b"nbd\0"),
            attribute(CONTROL_FAMILY_ID, &31_u16.to_le_bytes()),
            attribute(CONTROL_GROUPS, &attribute(1, &group.concat())),
        ];
        let answer = message(KIND_CONTROL, 1, 2, &body.concat());
        let read = family(&answer).expect("a family");
        assert_eq!(read, FAMILY);
        assert_eq!(read.group_mask().expect("a mask"), 1 << 8);
        let far = Family { id: 31, group: 33 };
        assert!(far.group_mask().is_err());
        for length in 0..answer.len() {
            assert!(family(&answer[..length]).is_err());
        }
    }

    #[test]
    fn a_refusal_carries_its_error_and_silence_none() {
        let refusal = |error: i32| {
            let mut bytes = 36_u32.to_le_bytes().to_vec();
            bytes.extend_from_slice(&KIND_ERROR.to_le_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&error.to_le_bytes());
            bytes.extend_from_slice(&[0; 16]);
            bytes
        };
        acknowledged(&refusal(0)).expect("no error");
        let refused = acknowledged(&refusal(-22)).expect_err("an error");
        assert!(refused.to_string().contains("22"));
        assert!(family(&refusal(-2)).is_err());
    }

    #[test]
    fn a_socket_is_an_item_in_a_list() {
        let message = reconfigure(FAMILY, 0, Change::Socket(5));
        let (kind, body) = open(&message).expect("a message");
        assert_eq!((kind, body[0]), (31, NBD_RECONFIGURE));
        let attributes = attributes_in(&body[4..]).expect("attributes");
        let sockets = attributes_in(find(&attributes, NBD_SOCKETS).expect("sockets"));
        let item = sockets.expect("a list")[0].1;
        assert_eq!(item, attribute(SOCKET_FD, &5_u32.to_le_bytes()));
    }

    #[test]
    fn a_dead_link_names_its_device() {
        let body = attribute(NBD_INDEX, &3_u32.to_le_bytes());
        let heard = message(FAMILY.id, NBD_LINK_DEAD, NBD_VERSION, &body);
        assert_eq!(dead_link(FAMILY, &heard).expect("a message"), Some(3));
        let other = message(FAMILY.id, NBD_RECONFIGURE, NBD_VERSION, &body);
        assert_eq!(dead_link(FAMILY, &other).expect("a message"), None);
    }
}
