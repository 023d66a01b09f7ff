//! The heap of the process: large buffers go back to the kernel when they are freed.
#![cfg_attr(
    target_env = "gnu",
    expect(
        unsafe_code,
        reason = "one setting of the C library, which no crate offers as a safe call"
    )
)]

/// Smaller buffers come from the heap. Above the largest frame of a volume (128 KiB), of which one is
/// made for each read and each part of a segment; below a segment.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: i32 = 256 * 1024;

/// Gives every buffer of 256 KiB or more a mapping of its own from now on. To be called before there are
/// threads.
///
/// By itself glibc raises that bound to the largest buffer that was ever freed, and then keeps segments
/// of some MiB on the heaps of several threads: that was half of all memory
/// (`docs/decisions/0014-large-buffers.md`). Other C libraries do no such thing.
pub fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the C library, which takes its own lock; no memory is touched.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) };
    #[cfg(target_env = "gnu")]
    debug_assert_eq!(done, 1, "the C library takes bounds up to 32 MiB");
}
