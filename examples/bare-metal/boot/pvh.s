# The PVH boot protocol: a note in the ELF file names the 32-bit entry point.
# Source: Xen, docs/misc/pvh.pandoc; XEN_ELFNOTE_PHYS32_ENTRY is note type 18.
.section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long protected_mode
