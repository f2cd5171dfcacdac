"""From layers to a squashfs, and to a SIF, with no root file system on disk and no right to make one."""
