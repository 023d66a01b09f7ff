//! What is measured: one case is one way to fill exports, one configuration, one store. Pure.

use std::fmt;

/// Where the objects go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// S3 over HTTP that costs next to nothing: bodies are read and dropped.
    Lean,
    /// The same behind TLS, where the client does not hash the payload.
    LeanTls,
    /// The endpoint of the tests: checks signatures, hashes and keeps everything.
    S3,
    /// A folder, without HTTP.
    File,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lean => "lean",
            Self::LeanTls => "lean TLS",
            Self::S3 => "S3",
            Self::File => "file",
        })
    }
}

/// What the bytes are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Rows as databases have them: keys that count up, hashes, words, free space.
    Rows,
    /// Nothing to compress.
    Noise,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Noise => "noise",
        })
    }
}

/// How the client wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// 1 MiB at a time, in order.
    Sequential,
    /// 4 KiB at a time, over a volume of eight times the size: most pages have no neighbour.
    Random,
}

impl Pattern {
    /// Bytes of a frame that such writes become.
    pub(crate) fn frame_bytes(self) -> usize {
        match self {
            Self::Sequential => 128 << 10,
            Self::Random => 4 << 10,
        }
    }

    /// The volume is so many times larger than what is written.
    pub(crate) fn spread(self) -> u64 {
        match self {
            Self::Sequential => 1,
            Self::Random => 8,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "1 MiB in order",
            Self::Random => "4 KiB at random",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    Off,
    On,
}

/// As the configuration calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Lz4,
    Zstd,
}

impl Codec {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) store: StoreKind,
    pub(crate) delay_ms: u64,
    pub(crate) content: Content,
    pub(crate) pattern: Pattern,
    pub(crate) codec: Codec,
    pub(crate) encryption: Encryption,
    /// The bytes are divided among them.
    pub(crate) exports: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = match self.encryption {
            Encryption::Off => "plain",
            Encryption::On => "encrypted",
        };
        let (content, pattern, codec) = (self.content, self.pattern, self.codec.name());
        write!(
            f,
            "{} {} ms, {content}, {pattern}, {codec}, {sealed}",
            self.store, self.delay_ms
        )?;
        match self.exports {
            1 => Ok(()),
            more => write!(f, ", {more} exports"),
        }
    }
}

/// As most people will run it, before a store without delay.
pub(crate) const BASE: Case = Case {
    store: StoreKind::Lean,
    delay_ms: 0,
    content: Content::Rows,
    pattern: Pattern::Sequential,
    codec: Codec::Lz4,
    encryption: Encryption::On,
    exports: 1,
};

const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];
const DELAYS_MS: [u64; 3] = [0, 30, 100];
pub(crate) const EXPORTS: u64 = 4;

/// One thing changed at a time: what a setting costs, what a delay costs, what company costs.
pub(crate) fn short() -> Vec<Case> {
    let mut cases = Vec::new();
    for codec in CODECS {
        for encryption in [Encryption::Off, Encryption::On] {
            cases.push(Case {
                codec,
                encryption,
                ..BASE
            });
        }
    }
    let content = Content::Noise;
    cases.push(Case { content, ..BASE });
    for delay_ms in &DELAYS_MS[1..] {
        let delay_ms = *delay_ms;
        cases.push(Case { delay_ms, ..BASE });
    }
    let pattern = Pattern::Random;
    for delay_ms in [DELAYS_MS[0], DELAYS_MS[2]] {
        cases.push(Case {
            delay_ms,
            pattern,
            ..BASE
        });
    }
    let exports = EXPORTS;
    for delay_ms in [DELAYS_MS[0], DELAYS_MS[2]] {
        cases.push(Case {
            delay_ms,
            exports,
            ..BASE
        });
    }
    for store in [StoreKind::LeanTls, StoreKind::S3, StoreKind::File] {
        cases.push(Case { store, ..BASE });
    }
    cases
}

/// Every setting with every delay and content, before the lean endpoint.
pub(crate) fn full() -> Vec<Case> {
    let mut cases = Vec::new();
    for delay_ms in DELAYS_MS {
        for content in [Content::Rows, Content::Noise] {
            for pattern in [Pattern::Sequential, Pattern::Random] {
                for exports in [1, EXPORTS] {
                    let case = Case {
                        delay_ms,
                        content,
                        pattern,
                        exports,
                        ..BASE
                    };
                    cases.extend(with_settings(case));
                }
            }
        }
    }
    let others = short().into_iter().filter(|it| it.store != BASE.store);
    cases.extend(others);
    cases
}

fn with_settings(case: Case) -> impl Iterator<Item = Case> {
    let both = [Encryption::Off, Encryption::On];
    CODECS.into_iter().flat_map(move |codec| {
        both.map(|encryption| Case {
            codec,
            encryption,
            ..case
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_case_is_measured_twice_and_all_settings_are() {
        for cases in [short(), full()] {
            let names: std::collections::BTreeSet<String> =
                cases.iter().map(ToString::to_string).collect();
            assert_eq!(names.len(), cases.len());
        }
        assert_eq!(full().len(), 3 * 2 * 2 * 2 * 6 + 3);
        let settings = with_settings(BASE).filter(|it| short().contains(it));
        assert_eq!(settings.count(), 6);
    }
}
