alter table tokens
    -- Null for a role that is good for all.
    add projects jsonb,
    -- Null for a machine's.
    add owner uuid,
    add expires_at timestamptz;
