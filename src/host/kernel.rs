//! The release of the running kernel, and what is broken in some.
#![forbid(unsafe_code)]

/// What `uname -r` prints, such as `6.12.48+deb13-amd64`.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether a kernel of this release sends broken headers and checksums where it cuts a train
/// (`UDP_SEGMENT`) whose segments are all of one length, as most of ours are: Linux 7.0.0 (commit
/// b10b446) to 7.1.4 (mended by 78effd8 and 5f17ae0; tailscale, pull request 19918). No error tells
/// of it, and not every network card shows it. A distribution may have mended its own, which
/// nothing tells either.
#[must_use]
pub fn breaks_udp_segmentation(release: &str) -> bool {
    version(release).is_some_and(|version| ([7, 0, 0]..=[7, 1, 4]).contains(&version))
}

/// The three numbers that a release begins with; the third is 0 if it is missing.
fn version(release: &str) -> Option<[u32; 3]> {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    let mut numbers = release[..end].split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_whose_udp_segmentation_is_broken_are_known() {
        for broken in
            ["7.0.0", "7.0.2-6-pve", "7.0.14-pve", "7.1", "7.1.0-rc3+", "7.1.4", "7.1.4.1"]
        {
            assert!(breaks_udp_segmentation(broken), "{broken}");
        }
        for sound in
            ["7.1.5", "7.1.14-generic", "7.2.0-rc1", "7.10.1", "6.18.44-fc", "6.19.9", "70.1.2"]
        {
            assert!(!breaks_udp_segmentation(sound), "{sound}");
        }
        for garbage in ["", "7", "7.", "7..1", "-7.0.1", "v7.0.1", "Linux", "99999999999.0.1"] {
            assert!(!breaks_udp_segmentation(garbage), "{garbage}");
        }
        assert!(version(&release()).is_some());
    }
}
