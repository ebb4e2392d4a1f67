-- A Wireshark dissector for the packet fabric of Velo, version 1 of its frames. What a field means stands in
-- dataplane/fabric/src/packet/protocol/frame/.
--
--   wireshark -X lua_script:deploy/velo.lua capture.pcap
--   tshark    -X lua_script:deploy/velo.lua -r capture.pcap -V
--
-- It finds the frames by how they look, on any UDP port. Of a sealed frame only the header can be shown, and of sealed data the fields.

local velo = Proto("velo", "Velo packet fabric")

local kinds = { [1] = "DATA", [2] = "CONTROL", [3] = "PROBE", [4] = "PROBED" }
local types = {
    [1] = "READ", [2] = "CREDIT", [3] = "END", [4] = "REFUSE", [5] = "CLOSE", [6] = "PING", [7] = "PONG",
    [8] = "READY",
}
local whats = { [0] = "content", [1] = "outboard" }
local refusals = { [0] = "not here", [1] = "refused" }
local closings = { [0] = "done", [1] = "stalled", [2] = "protocol", [3] = "source" }

local f = {
    version = ProtoField.uint8("velo.version", "Version", base.DEC, nil, 0xf0),
    kind = ProtoField.uint8("velo.kind", "Kind", base.DEC, kinds, 0x0f),
    phase = ProtoField.bool("velo.phase", "Key phase", 8, nil, 0x01),
    sealed = ProtoField.bool("velo.sealed", "Sealed", 8, nil, 0x02),
    path = ProtoField.uint32("velo.path", "Path", base.HEX),
    number = ProtoField.uint64("velo.number", "Packet number", base.DEC),
    slot = ProtoField.uint16("velo.slot", "Slot", base.DEC),
    read = ProtoField.uint32("velo.read", "Read", base.DEC),
    segment = ProtoField.uint16("velo.segment", "Segment", base.DEC),
    len = ProtoField.uint32("velo.len", "Length", base.DEC),
    credit = ProtoField.uint32("velo.credit", "Credit", base.DEC),
    echo = ProtoField.uint32("velo.echo", "Echo (us)", base.DEC),
    held = ProtoField.uint32("velo.held", "Held (us)", base.DEC),
    token = ProtoField.bytes("velo.token", "Token"),
    payload_crc = ProtoField.uint32("velo.payload_crc", "CRC32C of the payload", base.HEX),
    header_crc = ProtoField.uint32("velo.header_crc", "CRC32C of the header", base.HEX),
    payload = ProtoField.bytes("velo.payload", "Payload"),
    payload_len = ProtoField.uint32("velo.payload_len", "Payload bytes", base.DEC),
    sealed_bytes = ProtoField.bytes("velo.sealed_bytes", "Encrypted"),
    tag = ProtoField.bytes("velo.tag", "Tag or MAC"),
    type = ProtoField.uint8("velo.message", "Message", base.DEC, types),
    what = ProtoField.uint8("velo.what", "What", base.DEC, whats),
    blob = ProtoField.bytes("velo.blob", "Blob"),
    offset = ProtoField.uint64("velo.offset", "Offset", base.DEC),
    segment_bytes = ProtoField.uint16("velo.segment_bytes", "Bytes of a segment", base.DEC),
    stamp = ProtoField.uint32("velo.stamp", "Stamp (us)", base.DEC),
    first = ProtoField.uint16("velo.first", "First segment", base.DEC),
    mask = ProtoField.uint64("velo.mask", "Segments granted", base.HEX),
    refusal = ProtoField.uint8("velo.refusal", "Why", base.DEC, refusals),
    closing = ProtoField.uint8("velo.closing", "Why", base.DEC, closings),
    nonce = ProtoField.uint64("velo.nonce", "Nonce", base.HEX),
    probed_bytes = ProtoField.uint32("velo.probed_bytes", "Size that is probed", base.DEC),
}
local fields = {}
for _, field in pairs(f) do
    fields[#fields + 1] = field
end
velo.fields = fields

local malformed = ProtoExpert.new("velo.malformed", "Not a frame of version 1", expert.group.MALFORMED, expert.severity.ERROR)
velo.experts = { malformed }

-- One message at the beginning of buf: adds it to tree and returns its length, or nil.
local layouts = {
    [1] = { 56, function(tree, buf)
        tree:add_le(f.what, buf(1, 1))
        tree:add_le(f.slot, buf(2, 2))
        tree:add_le(f.read, buf(4, 4))
        tree:add(f.blob, buf(8, 32))
        tree:add_le(f.offset, buf(40, 8))
        tree:add_le(f.len, buf(48, 4))
        tree:add_le(f.segment_bytes, buf(52, 2))
    end },
    [2] = { 28, function(tree, buf)
        tree:add_le(f.slot, buf(2, 2))
        tree:add_le(f.read, buf(4, 4))
        tree:add_le(f.credit, buf(8, 4))
        tree:add_le(f.stamp, buf(12, 4))
        tree:add_le(f.first, buf(16, 2))
        tree:add_le(f.mask, buf(20, 8))
    end },
    [3] = { 8, function(tree, buf)
        tree:add_le(f.slot, buf(2, 2))
        tree:add_le(f.read, buf(4, 4))
    end },
    [4] = { 8, function(tree, buf)
        tree:add_le(f.refusal, buf(1, 1))
        tree:add_le(f.slot, buf(2, 2))
        tree:add_le(f.read, buf(4, 4))
    end },
    [5] = { 8, function(tree, buf) tree:add_le(f.closing, buf(1, 1)) end },
    [6] = { 8, function(tree, buf) tree:add_le(f.stamp, buf(4, 4)) end },
    [7] = { 8, function(tree, buf) tree:add_le(f.stamp, buf(4, 4)) end },
    [8] = { 8, function(tree, buf)
        tree:add_le(f.slot, buf(2, 2))
        tree:add_le(f.read, buf(4, 4))
    end },
}

local function messages(tree, buf)
    local names = {}
    local at = 0
    while at < buf:len() do
        local layout = layouts[buf(at, 1):uint()]
        if layout == nil or at + layout[1] > buf:len() then
            tree:add_proto_expert_info(malformed)
            break
        end
        local bytes = buf(at, layout[1])
        local name = types[buf(at, 1):uint()]
        local branch = tree:add(velo, bytes, name)
        branch:add_le(f.type, bytes(0, 1))
        layout[2](branch, bytes)
        names[#names + 1] = name
        at = at + layout[1]
    end
    return table.concat(names, " ")
end

function velo.dissector(buf, pinfo, root)
    local len = buf:len()
    if len < 33 then return 0 end
    local kind = bit.band(buf(0, 1):uint(), 15)
    local sealed = bit.band(buf(1, 1):uint(), 2) ~= 0
    local tree = root:add(velo, buf(), "Velo " .. (kinds[kind] or "frame"))
    tree:add(f.version, buf(0, 1))
    tree:add(f.kind, buf(0, 1))
    tree:add(f.phase, buf(1, 1))
    tree:add(f.sealed, buf(1, 1))
    tree:add_le(f.path, buf(4, 4))
    tree:add_le(f.number, buf(8, 8))
    local info = string.format("%s path %08x number %s", kinds[kind] or "?", buf(4, 4):le_uint(), tostring(buf(8, 8):le_uint64()))
    if kind == 1 and len > 56 then
        tree:add_le(f.slot, buf(16, 2))
        tree:add_le(f.segment, buf(18, 2))
        tree:add_le(f.read, buf(20, 4))
        tree:add_le(f.len, buf(24, 4))
        tree:add_le(f.credit, buf(28, 4))
        tree:add_le(f.echo, buf(32, 4))
        tree:add_le(f.held, buf(36, 4))
        tree:add(f.payload_len, len - 56):set_generated()
        info = info .. string.format(" slot %d read %d segment %d, %d bytes",
            buf(16, 2):le_uint(), buf(20, 4):le_uint(), buf(18, 2):le_uint(), len - 56)
        if sealed then
            tree:add(f.sealed_bytes, buf(40, len - 56))
            tree:add(f.tag, buf(len - 16, 16))
        else
            tree:add(f.token, buf(40, 8))
            tree:add_le(f.payload_crc, buf(48, 4))
            tree:add_le(f.header_crc, buf(52, 4))
            tree:add(f.payload, buf(56))
        end
    elseif kind >= 2 and kind <= 4 then
        local body = buf(16, len - 32)
        if sealed then
            tree:add(f.sealed_bytes, body)
        elseif kind == 2 then
            info = info .. ": " .. messages(tree, body)
        elseif body:len() >= 8 then
            tree:add_le(f.nonce, body(0, 8))
        else
            tree:add_proto_expert_info(malformed)
        end
        tree:add(f.tag, buf(len - 16, 16))
        if kind > 2 then
            tree:add(f.probed_bytes, len):set_generated()
        end
    else
        tree:add_proto_expert_info(malformed)
    end
    pinfo.cols.protocol = "Velo"
    pinfo.cols.info = info
    return len
end

-- Version 1, a kind that exists, no flag that does not, zeroes where they must be, and a packet number.
local function looks_like_it(buf, pinfo, root)
    if buf:len() < 33 then return false end
    local kind = bit.band(buf(0, 1):uint(), 15)
    if bit.rshift(buf(0, 1):uint(), 4) ~= 1 or kind < 1 or kind > 4 then return false end
    if buf(1, 1):uint() > 3 or buf(2, 2):uint() ~= 0 or buf(8, 8):le_uint64() == UInt64(0) then return false end
    if kind == 1 and buf:len() < 57 then return false end
    velo.dissector(buf, pinfo, root)
    return true
end

velo:register_heuristic("udp", looks_like_it)
DissectorTable.get("udp.port"):add_for_decode_as(velo)
