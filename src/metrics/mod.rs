//! What a monitoring system scrapes: a [`picture::Picture`] of the process as text, in the two formats that are read.
//!
//! Pure: the shell gathers the picture, [`render`] writes it. `exporter.rs` has the metrics of pgbouncer_exporter under its
//! names, which dashboards and alerts know; `ours.rs` those it has not; `bounds.rs` keeps the number of label values
//! bounded; `text.rs` knows the formats; `accept.rs` which of them a client asks for.

pub mod accept;
pub mod bounds;
mod exporter;
mod ours;
pub mod picture;
#[cfg(test)]
mod tests;
pub mod text;

pub use accept::Format;
pub use picture::Picture;

/// The whole exposition.
#[must_use]
pub fn render(picture: &Picture, format: Format) -> String {
    let mut out = text::Exposition::new(format);
    exporter::write(&mut out, picture);
    ours::write(&mut out, picture);
    out.finish()
}
