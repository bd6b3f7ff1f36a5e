//! Base64 with the standard alphabet (RFC 4648 §4); the URL alphabet and missing padding are read, too, as protobuf's JSON
//! mapping wants.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain([&0; 2])
            .take(3)
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte));
        for position in 0..4 {
            if position > chunk.len() {
                out.push(b'=');
            } else {
                out.push(ALPHABET[(group >> (18 - 6 * position) & 63) as usize]);
            }
        }
    }
}

/// `None` when it is not base64.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    let whole = padding == 0 || (padding <= 2 && text.len().is_multiple_of(4));
    if !whole || digits.len() % 4 == 1 {
        return None;
    }
    for chunk in digits.chunks(4) {
        let mut group = 0u32;
        for byte in chunk {
            group = group << 6 | digit(*byte)?;
        }
        group <<= 6 * (4 - chunk.len());
        out.extend_from_slice(&group.to_be_bytes()[1..chunk.len()]);
    }
    Some(())
}

fn digit(byte: u8) -> Option<u32> {
    let digit = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(u32::from(digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::testing::cases(256))]

        #[test]
        fn comes_back(bytes: Vec<u8>) {
            let mut text = Vec::new();
            encode(&bytes, &mut text);
            prop_assert_eq!(text.len() % 4, 0);
            let mut back = Vec::new();
            prop_assert!(decode(&text, &mut back).is_some());
            prop_assert_eq!(&back, &bytes);
            back.clear();
            let bare = text.iter().position(|byte| *byte == b'=').map_or(&text[..], |end| &text[..end]);
            prop_assert!(decode(bare, &mut back).is_some());
            prop_assert_eq!(&back, &bytes);
        }
    }

    #[test]
    fn known_text() {
        let mut text = Vec::new();
        encode(b"fooba", &mut text);
        assert_eq!(text, b"Zm9vYmE=");
        for wrong in ["!!!!", "A", "Zm9vYmE==", "Zg=", "====", "Zg===", "Z g="] {
            assert!(decode(wrong.as_bytes(), &mut Vec::new()).is_none(), "{wrong}");
        }
    }
}
