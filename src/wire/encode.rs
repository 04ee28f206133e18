//! The messages that the pooler itself originates, appended to the caller's buffer.

/// Appends a message whose body `fill` writes; the length is filled in afterwards.
pub fn message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[tag, 0, 0, 0, 0]);
    fill(out);
    let len = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
    out[start + 1..start + 5].copy_from_slice(&len.to_be_bytes());
}

/// Appends `text` up to its first NUL, and a NUL.
pub fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().copied().take_while(|&byte| byte != 0));
    out.push(0);
}

/// Appends an ErrorResponse with exactly the fields severity, SQLSTATE and message, in this order.
pub fn error_response(out: &mut Vec<u8>, severity: &str, sqlstate: &str, text: &str) {
    fields(out, b'E', severity, sqlstate, text);
}

/// Appends a NoticeResponse with severity NOTICE and SQLSTATE 00000.
pub fn notice(out: &mut Vec<u8>, text: &str) {
    fields(out, b'N', "NOTICE", "00000", text);
}

fn fields(out: &mut Vec<u8>, tag: u8, severity: &str, sqlstate: &str, text: &str) {
    message(out, tag, |body| {
        for (field, value) in [(b'S', severity), (b'C', sqlstate), (b'M', text)] {
            body.push(field);
            cstr(body, value.as_bytes());
        }
        body.push(0);
    });
}

/// Appends a ReadyForQuery with the given transaction status (`I`, `T` or `E`).
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, b'S', |body| {
        cstr(body, name);
        cstr(body, value);
    });
}

/// Appends AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
}

/// Appends BackendKeyData with an eight-byte key.
pub fn backend_key_data(out: &mut Vec<u8>, key: [u8; 8]) {
    out.extend_from_slice(&[b'K', 0, 0, 0, 12]);
    out.extend_from_slice(&key);
}

/// Appends a simple Query.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    message(out, b'Q', |body| cstr(body, sql));
}

/// Appends the messages of the extended protocol that run `sql` once with one parameter, given as text: unnamed
/// statement, unnamed portal, all rows, Sync.
pub fn unnamed_query(out: &mut Vec<u8>, sql: &[u8], parameter: &[u8]) {
    message(out, b'P', |body| {
        cstr(body, b"");
        cstr(body, sql);
        body.extend_from_slice(&[0, 0]);
    });
    message(out, b'B', |body| {
        body.extend_from_slice(b"\0\0\0\0\0\x01");
        body.extend_from_slice(&u32::try_from(parameter.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(parameter);
        body.extend_from_slice(&[0, 0]);
    });
    message(out, b'D', |body| body.extend_from_slice(b"P\0"));
    message(out, b'E', |body| body.extend_from_slice(b"\0\0\0\0\0"));
    message(out, b'S', |_| {});
}

/// Appends a startup packet of protocol 3.0 with the given parameters.
pub fn startup(out: &mut Vec<u8>, parameters: &[(&str, &str)]) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0]);
    out.extend_from_slice(&0x0003_0000_u32.to_be_bytes());
    for (name, value) in parameters {
        cstr(out, name.as_bytes());
        cstr(out, value.as_bytes());
    }
    out.push(0);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a CancelRequest.
pub fn cancel_request(out: &mut Vec<u8>, key: [u8; 8]) {
    out.extend_from_slice(&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e]);
    out.extend_from_slice(&key);
}

/// Appends an SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_has_three_fields_in_order() {
        let mut out = Vec::new();
        error_response(&mut out, "FATAL", "08P01", "no");
        assert_eq!(out, b"E\0\0\0\x17SFATAL\0C08P01\0Mno\0\0");
    }

    #[test]
    fn startup_counts_itself() {
        let mut out = Vec::new();
        startup(&mut out, &[("user", "a")]);
        assert_eq!(out, b"\0\0\0\x10\0\x03\0\0user\0a\0\0");
    }

    #[test]
    fn a_nul_in_a_text_cannot_add_a_field() {
        let mut out = Vec::new();
        parameter_status(&mut out, b"a", b"b\0c");
        assert_eq!(out, b"S\0\0\0\x08a\0b\0");
    }
}
