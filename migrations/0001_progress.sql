-- How far each read model has come. A row advances in the transaction that applies the events.
create table checkpoints (
    model text primary key,
    sequence bigint not null
);

-- One row: which event log these read models were built from, and why the projector stopped, if it did.
create table projector (
    only_row boolean primary key default true check (only_row),
    installation uuid,
    error text
);

insert into projector default values;
