# The boot sector of a BIOS disk: loads the image that follows it on the disk to 0x10000 and jumps there, to the
# trampoline. Needs int 13h extensions.
.section .mbr, "ax"
.code16
.globl mbr
mbr:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $mbr_chunks, %cx
2:  mov $0x42, %ah                  # extended read, the drive is in dl
    mov $packet, %si
    int $0x13
    jc 3f
    addw $0x800, packet + 6         # the next 32 KiB of memory
    addl $64, packet + 8            # and of the disk
    loop 2b
    in $0x92, %al                   # A20
    or $2, %al
    out %al, $0x92
    ljmp $0x1000, $0
3:  hlt
    jmp 3b

.balign 4
packet:
    .word 16, 64                    # its size, sectors
    .word 0, 0x1000                 # to offset, segment
    .quad 1                         # from sector

.org 510
    .word 0xaa55
