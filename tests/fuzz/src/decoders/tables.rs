//! Files of the kernel.

use std::path::Path;

use paceline::fuzzing::{kernel, mount_point, mounted, parent, send_queue};
use paceline_fuzz::{for_each_byte, input};

pub fn tables(input: &[u8]) {
    let rest = &mut &input[..];
    let kind = input::byte(rest);
    let table = *rest;
    for_each_byte(table, 64, || match kind % 5 {
        0 => {
            let root = Path::new(if kind & 0x80 == 0 { "/data" } else { "/" });
            for (place, (_, device)) in mounted(table, root) {
                assert!(place.starts_with(root) && !device.contains(' '));
            }
        }
        1 => {
            let text = String::from_utf8_lossy(table);
            let point = mount_point(&text);
            assert!(text.contains('\\') || point == text);
        }
        2 => {
            let _ = send_queue(&String::from_utf8_lossy(table), 1234);
        }
        3 => {
            let _ = parent(&String::from_utf8_lossy(table));
        }
        _ => {
            let _ = kernel(&String::from_utf8_lossy(table));
        }
    });
}
