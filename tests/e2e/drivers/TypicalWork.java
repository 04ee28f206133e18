// Typical work of an application with pgjdbc. Arguments: port, number of clients.

import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

public class TypicalWork {
    static String url;

    interface Work {
        void run() throws Exception;
    }

    static void same(Object got, Object expected) {
        if (!Objects.deepEquals(got, expected)) throw new AssertionError("got " + got + ", expected " + expected);
    }

    static void fails(String state, Work work) throws Exception {
        try {
            work.run();
        } catch (SQLException error) {
            same(error.getSQLState(), state);
            return;
        }
        throw new AssertionError("no error " + state);
    }

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(url + more, "app", "app-secret");
    }

    static Object one(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            return one(statement, values);
        }
    }

    static Object one(PreparedStatement statement, Object... values) throws SQLException {
        for (int n = 0; n < values.length; n++) statement.setObject(n + 1, values[n]);
        try (ResultSet rows = statement.executeQuery()) {
            same(rows.next(), true);
            return rows.getObject(1);
        }
    }

    static void types(Connection connection) throws Exception {
        OffsetDateTime at = OffsetDateTime.of(2001, 9, 9, 1, 46, 40, 0, ZoneOffset.UTC);
        String sql = "SELECT ?::int, ?::bigint, ?::numeric, ?::float8, ?::text, ?::bool, ?::text, ?::bytea, ?::timestamptz, ?::int[]";
        // the driver asks for binary results from the fifth execution on
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int turn = 0; turn < 7; turn++) {
                statement.setInt(1, turn);
                statement.setLong(2, 9007199254740993L);
                statement.setBigDecimal(3, new BigDecimal("12345678901234567890.123"));
                statement.setDouble(4, 0.1 + 0.2);
                statement.setString(5, "\u00e4\ud83d\udc18");
                statement.setBoolean(6, true);
                statement.setString(7, null);
                statement.setBytes(8, new byte[] {0, -1});
                statement.setObject(9, at);
                statement.setArray(10, connection.createArrayOf("int4", new Integer[] {1, 2}));
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same(rows.getInt(1), turn);
                    same(rows.getLong(2), 9007199254740993L);
                    same(rows.getBigDecimal(3), new BigDecimal("12345678901234567890.123"));
                    same(rows.getDouble(4), 0.1 + 0.2);
                    same(rows.getString(5), "\u00e4\ud83d\udc18");
                    same(rows.getBoolean(6), true);
                    same(rows.getString(7), null);
                    same(rows.getBytes(8), new byte[] {0, -1});
                    same(rows.getObject(9, OffsetDateTime.class).toInstant(), at.toInstant());
                    same(rows.getArray(10).getArray(), new Integer[] {1, 2});
                }
            }
        }
    }

    /** Every client has its own S_1, S_2, ... once it has executed a statement five times. */
    static void statements(Connection connection, int number) throws Exception {
        try (PreparedStatement mine = connection.prepareStatement("SELECT " + number + " * 1000 + ?::int");
                PreparedStatement text = connection.prepareStatement("SELECT ?::text")) {
            for (int turn = 0; turn < 14; turn++) {
                same(one(mine, turn), number * 1000 + turn);
                same(one(text, "" + number), "" + number);
            }
        }
        same(connection.isValid(2), true);
        try (Statement several = connection.createStatement()) {
            same(several.execute("SELECT 1; SELECT 2"), true);
            same(several.getMoreResults(), true);
        }
    }

    static void transactions(Connection connection, int number) throws Exception {
        String count = "SELECT count(*)::int FROM driver_work WHERE client = ? AND n = 1000";
        connection.setAutoCommit(false);
        for (int turn = 0; turn < 7; turn++) {
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO driver_work VALUES (?, 1000, ?) RETURNING n")) {
                same(one(insert, number, "for a moment"), 1000);
                Savepoint before = connection.setSavepoint();
                fails("23505", () -> one(insert, number, "twice"));
                fails("25P02", () -> one(connection, "SELECT 1"));
                connection.rollback(before);
                same(one(connection, count, number), 1);
                connection.rollback();
                same(one(connection, count, number), 0);
                connection.commit();
            }
        }
        connection.setAutoCommit(true);
    }

    static void errors(Connection connection) throws Exception {
        try (PreparedStatement divide = connection.prepareStatement("SELECT 100 / ?::int")) {
            for (int turn = 0; turn < 8; turn++) {
                fails("22012", () -> one(divide, 0));
                same(one(divide, 4), 25);
                fails("42P01", () -> one(connection, "SELECT * FROM no_such_table"));
            }
        }
    }

    /** Batches are pipelines with one Sync. */
    static void batches(Connection connection, int number, int counted) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO driver_work VALUES (?, ?, ?)")) {
            for (int n = 0; n < 300; n++) {
                insert.setInt(1, number);
                insert.setInt(2, 2000 + n);
                insert.setString(3, "batch");
                insert.addBatch();
            }
            same(insert.executeBatch()[299], counted);
            insert.setInt(1, number);
            insert.setInt(2, 2000);
            insert.setString(3, "batch");
            insert.addBatch();
            insert.addBatch();
            fails("23505", () -> {
                try {
                    insert.executeBatch();
                } catch (BatchUpdateException error) {
                    throw error.getNextException() == null ? error : error.getNextException();
                }
            });
        }
        connection.rollback();
        connection.setAutoCommit(true);
    }

    /** A fetch size makes the driver read through a named portal. */
    static void portals(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("SELECT generate_series(1, ?::int)")) {
            statement.setFetchSize(150);
            for (int turn = 0; turn < 7; turn++) {
                statement.setInt(1, 1000);
                long sum = 0;
                try (ResultSet rows = statement.executeQuery()) {
                    while (rows.next()) {
                        sum += rows.getInt(1);
                        // another statement between two fetches
                        if (rows.getInt(1) % 400 == 0) same(one(connection, "SELECT 7"), 7);
                    }
                }
                same(sum, 500500L);
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void largeObjects(Connection connection, int number) throws Exception {
        connection.setAutoCommit(false);
        LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        byte[] content = new byte[100_000];
        Arrays.fill(content, (byte) number);
        long oid = manager.createLO(LargeObjectManager.READWRITE);
        LargeObject large = manager.open(oid, LargeObjectManager.WRITE);
        large.write(content);
        large.close();
        connection.commit();
        large = manager.open(oid, LargeObjectManager.READ);
        same(large.read(200_000), content);
        large.close();
        manager.unlink(oid);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void copy(Connection connection, int number) throws Exception {
        StringBuilder rows = new StringBuilder();
        for (int n = 0; n < 100; n++) rows.append(number + "\t" + n + "\t" + number + "-" + n + "\n");
        one(connection, "WITH gone AS (DELETE FROM driver_work WHERE client = ? RETURNING 1) SELECT count(*) FROM gone", number);
        var manager = connection.unwrap(PGConnection.class).getCopyAPI();
        same(manager.copyIn("COPY driver_work FROM STDIN", new StringReader(rows.toString())), 100L);
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        manager.copyOut("COPY (SELECT * FROM driver_work WHERE client = " + number + " ORDER BY n) TO STDOUT", out);
        same(out.toString("UTF-8"), rows.toString());
        fails("22P02", () -> manager.copyIn("COPY driver_work FROM STDIN", new StringReader("no number\n")));
        var copying = manager.copyIn("COPY driver_work FROM STDIN");
        copying.writeToCopy("1\t".getBytes(), 0, 2);
        copying.cancelCopy();
        same(one(connection, "SELECT count(*)::int FROM driver_work WHERE client = ?", number), 100);
    }

    static void cancel(Connection connection, int number) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            fails("57014", () -> statement.executeQuery("SELECT pg_sleep(30), " + number));
        }
        same(one(connection, "SELECT ?::int", number), number);
    }

    static void work(int number) throws Exception {
        try (Connection connection = connect("")) {
            types(connection);
            statements(connection, number);
            transactions(connection, number);
            errors(connection);
            batches(connection, number, 1);
            portals(connection);
            largeObjects(connection, number);
            copy(connection, number);
            if (number == 0) cancel(connection, number);
        }
        try (Connection connection = connect("?autosave=always&reWriteBatchedInserts=true")) {
            connection.setAutoCommit(false);
            for (int turn = 0; turn < 7; turn++) {
                fails("22012", () -> one(connection, "SELECT 1 / ?::int", 0));
                same(one(connection, "SELECT ?::int", number), number);
            }
            connection.rollback();
            // one INSERT for many rows does not tell what became of each
            batches(connection, number, Statement.SUCCESS_NO_INFO);
        }
        try (Connection connection = connect("?preferQueryMode=simple")) {
            same(one(connection, "SELECT ?::int", number), number);
        }
    }

    public static void main(String[] arguments) throws Exception {
        url = "jdbc:postgresql://127.0.0.1:" + arguments[0] + "/p0";
        int clients = Integer.parseInt(arguments[1]);
        try (Connection connection = connect("")) {
            same(one(connection, "SELECT 1"), 1);
        }
        ExecutorService threads = Executors.newFixedThreadPool(clients);
        List<Future<Void>> all = new ArrayList<>();
        for (int n = 0; n < clients; n++) {
            int number = n;
            Callable<Void> one = () -> {
                work(number);
                return null;
            };
            all.add(threads.submit(one));
        }
        threads.shutdown();
        for (Future<Void> one : all) one.get();
        System.out.println("done");
    }
}
