//! Remembers panics for whoever catches them.

use std::cell::RefCell;

thread_local! {
    /// Where and why this thread panicked last.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Lets every panic be remembered by its thread, for whoever catches it. Nothing is logged here: the panic may have come
/// while a line was being written.
pub(super) fn remember() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("no reason given");
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        LAST_PANIC.with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = format!("{text}{place}");
            }
        });
        default(info);
    }));
}

/// The panic that this thread has just caught.
#[must_use]
pub fn last_panic() -> String {
    LAST_PANIC.with(|last| last.try_borrow_mut().map(|mut last| std::mem::take(&mut *last)).unwrap_or_default())
}
