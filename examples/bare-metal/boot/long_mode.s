# From real mode (16 bits) or protected mode (32 bits, no paging) to 64-bit Rust. All CPUs come through here.

# Selectors in boot_gdt.
.set CODE64, 0x08
.set DATA, 0x10
.set CODE32, 0x18

# Works at any address that is a multiple of 16 in the first megabyte, with cs pointing to it.
.section .trampoline, "ax"
.code16
.globl trampoline, trampoline_end
trampoline:
    cli
    lgdtl %cs:trampoline_gdt - trampoline
    mov $1, %eax                    # PE
    mov %eax, %cr0
    ljmpl $CODE32, $flat_segments
trampoline_gdt:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:

.section .boot, "ax"
.code32
flat_segments:
    mov $DATA, %ax
    mov %ax, %ds

.globl protected_mode
protected_mode:
    lgdt boot_gdt_pointer
    mov $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER
    mov $0x900, %eax                # LME, NXE
    xor %edx, %edx
    wrmsr
    mov $0x80010033, %eax           # PG, WP, NE, ET, MP, PE
    mov %eax, %cr0
    ljmp $CODE64, $long_mode

.code64
long_mode:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    xor %ebp, %ebp
    mov boot_stack(%rip), %rsp
    call *boot_entry(%rip)
    ud2

# The first CPU clears what no loader cleared. The return address that this overwrites is not needed.
clear_bss:
    mov $bss_start, %edi
    mov $bss_size, %ecx
    xor %eax, %eax
    rep stosb
    jmp first_cpu

.section .data
# Where the CPU goes that comes next, and its stack. The first CPU overwrites them for the second.
.balign 8
.globl boot_stack, boot_entry
boot_stack:
    .quad first_stack_end
boot_entry:
    .quad clear_bss

boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # CODE64
    .quad 0x00cf93000000ffff        # DATA
    .quad 0x00cf9b000000ffff        # CODE32
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

# The first 4 GiB, each address to itself, in pages of 2 MiB: present, writable.
.balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .zero 4096 - 8
boot_pdpt:
    .quad boot_pd + 3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .zero 4096 - 32
boot_pd:
.set page, 0
.rept 2048
    .quad page + 0x83
    .set page, page + 0x200000
.endr

.section .bss
.balign 16
    .zero 0x10000
first_stack_end:
    .zero 0x10000
.globl second_stack_end
second_stack_end:
