// pgjdbc at its defaults: it prepares a statement on the server when it runs for the fifth time.

import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PGobject;

public final class Jdbc {
    static final String TABLE = System.getenv("DRIVER_TABLE");
    static final String UNICODE = "Grüße, 世界 🐘";

    interface Check {
        void run() throws Exception;
    }

    static Connection session() throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/"
            + System.getenv("PGDATABASE");
        if (System.getenv("PGSSLROOTCERT") != null) {
            url += "?sslmode=verify-full&sslrootcert=" + System.getenv("PGSSLROOTCERT");
        }
        return DriverManager.getConnection(url, System.getenv("PGUSER"), System.getenv("PGPASSWORD"));
    }

    static void equal(Object got, Object expected) {
        if (!Objects.equals(got, expected)) {
            throw new AssertionError("got " + brief(got) + ", expected " + brief(expected));
        }
    }

    static String brief(Object one) {
        String text = String.valueOf(one);
        return text.length() > 100 ? text.substring(0, 100) : text;
    }

    static Object value(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int place = 0; place < parameters.length; place++) {
                statement.setObject(place + 1, parameters[place]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                return rows.next() ? rows.getObject(1) : null;
            }
        }
    }

    static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static void fails(Connection connection, String sql, String sqlstate) {
        try {
            execute(connection, sql);
        } catch (SQLException error) {
            equal(error.getSQLState(), sqlstate);
            return;
        }
        throw new AssertionError(sql + " didn't fail");
    }

    static boolean noted(int number) throws SQLException {
        try (Connection other = session()) {
            return value(other, "SELECT id FROM " + TABLE + " WHERE id = ? FOR SHARE", number) != null;
        }
    }

    static void connect() throws SQLException {
        try (Connection connection = session()) {
            equal(value(connection, "SELECT 1"), 1);
            equal(connection.getMetaData().getDatabaseMajorVersion() >= 15, true);
        }
    }

    static void types() throws SQLException {
        try (Connection connection = session()) {
            OffsetDateTime moment = OffsetDateTime.parse("2026-01-02T03:04:05.678901Z");
            byte[] bytes = {0, -1, 39, 92};
            // Some times over, so that answers come as text first, then in binary.
            try (PreparedStatement statement = connection.prepareStatement(
                    "SELECT ?::integer, ?::bigint, ?::numeric, ?::text, ?::bytea, ?::timestamptz, ?::jsonb,"
                    + " ?::integer[], ?::text[], ?::boolean, ?::date")) {
                for (int time = 0; time < 8; time++) {
                    Integer[] numbers = {1, 2, null};
                    String[] texts = {"a", null, "with \"quotes\", {braces}"};
                    BigDecimal numeric = new BigDecimal("12345678901234567890.0987654321");
                    statement.setInt(1, Integer.MAX_VALUE);
                    statement.setLong(2, -9007199254740993L);
                    statement.setBigDecimal(3, numeric);
                    statement.setString(4, UNICODE);
                    statement.setBytes(5, bytes);
                    statement.setObject(6, moment);
                    PGobject json = new PGobject();
                    json.setType("jsonb");
                    json.setValue("{\"a\": [1, null]}");
                    statement.setObject(7, json);
                    statement.setArray(8, connection.createArrayOf("integer", numbers));
                    statement.setArray(9, connection.createArrayOf("text", texts));
                    statement.setBoolean(10, true);
                    statement.setNull(11, Types.DATE);
                    try (ResultSet row = statement.executeQuery()) {
                        row.next();
                        equal(row.getInt(1), Integer.MAX_VALUE);
                        equal(row.getLong(2), -9007199254740993L);
                        equal(row.getBigDecimal(3), numeric);
                        equal(row.getString(4), UNICODE);
                        equal(Arrays.equals(row.getBytes(5), bytes), true);
                        equal(row.getObject(6, OffsetDateTime.class).toInstant(), moment.toInstant());
                        equal(row.getString(7), "{\"a\": [1, null]}");
                        Array back = row.getArray(8);
                        equal(Arrays.asList((Object[]) back.getArray()), Arrays.asList((Object[]) numbers));
                        equal(Arrays.asList((Object[]) row.getArray(9).getArray()), Arrays.asList((Object[]) texts));
                        equal(row.getBoolean(10), true);
                        equal(row.getObject(11), null);
                    }
                }
            }
        }
    }

    static void prepared() throws SQLException {
        try (Connection connection = session();
                PreparedStatement plus = connection.prepareStatement("SELECT ?::integer + 1");
                PreparedStatement joined = connection.prepareStatement("SELECT ?::text || 'x'")) {
            for (int number = 0; number < 20; number++) {
                connection.setAutoCommit(number % 3 != 0);
                plus.setInt(1, number);
                try (ResultSet row = plus.executeQuery()) {
                    row.next();
                    equal(row.getInt(1), number + 1);
                }
                joined.setString(1, "" + number);
                try (ResultSet row = joined.executeQuery()) {
                    row.next();
                    equal(row.getString(1), number + "x");
                }
            }
        }
    }

    static void commit() throws SQLException {
        try (Connection connection = session()) {
            connection.setAutoCommit(false);
            execute(connection, "INSERT INTO " + TABLE + " VALUES (100, 'kept')");
            connection.commit();
            equal(noted(100), true);
        }
    }

    static void rollback() throws SQLException {
        try (Connection connection = session()) {
            connection.setAutoCommit(false);
            execute(connection, "INSERT INTO " + TABLE + " VALUES (200, 'gone')");
            connection.rollback();
            equal(noted(200), false);
        }
    }

    static void savepoint() throws SQLException {
        try (Connection connection = session()) {
            connection.setAutoCommit(false);
            execute(connection, "INSERT INTO " + TABLE + " VALUES (300)");
            Savepoint here = connection.setSavepoint("here");
            fails(connection, "INSERT INTO " + TABLE + " VALUES (300)", "23505");
            connection.rollback(here);
            execute(connection, "INSERT INTO " + TABLE + " VALUES (301)");
            connection.commit();
            equal(noted(300) && noted(301), true);
        }
    }

    static void error() throws SQLException {
        try (Connection connection = session()) {
            for (int time = 0; time < 8; time++) {
                fails(connection, "SELECT 1/0", "22012");
                fails(connection, "SELEC 1", "42601");
                equal(value(connection, "SELECT 1"), 1);
            }
        }
    }

    static void errorInTransaction() throws SQLException {
        try (Connection connection = session()) {
            connection.setAutoCommit(false);
            for (int time = 0; time < 8; time++) {
                fails(connection, "SELECT 1/0", "22012");
                fails(connection, "SELECT 1", "25P02");
                connection.rollback();
                equal(value(connection, "SELECT 1"), 1);
                connection.commit();
            }
        }
    }

    static void copyIn() throws Exception {
        try (Connection connection = session()) {
            StringBuilder rows = new StringBuilder();
            for (int number = 0; number < 10000; number++) {
                rows.append(1000000 + number).append('\t').append(UNICODE).append('\n');
            }
            CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
            long count = copy.copyIn("COPY " + TABLE + " (id, note) FROM STDIN", new StringReader(rows.toString()));
            equal(count, 10000L);
        }
    }

    static void copyOut() throws Exception {
        try (Connection connection = session()) {
            StringWriter out = new StringWriter();
            CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
            equal(copy.copyOut("COPY (SELECT generate_series(10000, 19999)) TO STDOUT", out), 10000L);
            equal(out.toString().length(), 60000);
        }
    }

    static void cursor() throws SQLException {
        try (Connection connection = session(); Statement statement = connection.createStatement()) {
            connection.setAutoCommit(false);
            statement.setFetchSize(100);
            long sum = 0;
            try (ResultSet rows = statement.executeQuery("SELECT generate_series(1, 10000)")) {
                while (rows.next()) {
                    sum += rows.getInt(1);
                }
            }
            connection.commit();
            equal(sum, 50005000L);
        }
    }

    static void cancel() throws Exception {
        try (Connection connection = session(); Statement statement = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    statement.cancel();
                } catch (InterruptedException | SQLException unexpected) {
                    throw new IllegalStateException(unexpected);
                }
            });
            canceller.start();
            try {
                statement.execute("SELECT pg_sleep(30)");
                throw new AssertionError("it wasn't cancelled");
            } catch (SQLException error) {
                equal(error.getSQLState(), "57014");
            }
            canceller.join();
            equal(value(connection, "SELECT 1"), 1);
        }
    }

    static void listen() throws SQLException {
        try (Connection listener = session(); Connection sender = session()) {
            execute(listener, "LISTEN jdbc_news");
            for (int number = 0; number < 3; number++) {
                value(sender, "SELECT pg_notify('jdbc_news', ?)", "" + number);
            }
            List<String> heard = new ArrayList<>();
            long deadline = System.nanoTime() + 10_000_000_000L;
            while (heard.size() < 3 && System.nanoTime() < deadline) {
                PGNotification[] some = listener.unwrap(PGConnection.class).getNotifications(1000);
                for (PGNotification each : some == null ? new PGNotification[0] : some) {
                    heard.add(each.getParameter());
                }
            }
            equal(heard, List.of("0", "1", "2"));
        }
    }

    static void bigRow() throws SQLException {
        String big = "0123456789abcdef".repeat(4 * 1024 * 1024 / 16);
        try (Connection connection = session()) {
            equal(value(connection, "SELECT ?::text", big), big);
        }
    }

    static void batch() throws SQLException {
        try (Connection connection = session();
                PreparedStatement statement =
                    connection.prepareStatement("INSERT INTO " + TABLE + " (id, note) VALUES (?, ?)")) {
            for (int number = 500; number < 600; number++) {
                statement.setInt(1, number);
                statement.setString(2, UNICODE);
                statement.addBatch();
            }
            equal(Arrays.stream(statement.executeBatch()).sum(), 100);
        }
    }

    static void settings() throws SQLException {
        try (Connection connection = session(); Connection other = session()) {
            execute(connection, "SET work_mem = '7MB'");
            for (int time = 0; time < 20; time++) {
                equal(value(connection, "SHOW work_mem"), "7MB");
                equal(value(other, "SHOW work_mem").equals("7MB"), false);
            }
        }
    }

    static Void add() throws SQLException {
        try (Connection connection = session()) {
            connection.setAutoCommit(false);
            for (int time = 0; time < 10; time++) {
                execute(connection, "UPDATE " + TABLE + " SET number = number + 1 WHERE id = 0");
                connection.commit();
            }
        }
        return null;
    }

    static void manyConnections() throws Exception {
        String total = "SELECT number FROM " + TABLE + " WHERE id = 0 FOR SHARE";
        try (Connection connection = session()) {
            int before = (Integer) value(connection, total);
            ExecutorService threads = Executors.newFixedThreadPool(8);
            List<Callable<Void>> work = new ArrayList<>();
            for (int each = 0; each < 8; each++) {
                work.add(Jdbc::add);
            }
            for (Future<Void> done : threads.invokeAll(work)) {
                done.get();
            }
            threads.shutdown();
            equal((Integer) value(connection, total) - before, 80);
        }
    }

    static void replica() throws Exception {
        try (Connection connection = session()) {
            long deadline = System.nanoTime() + 10_000_000_000L;
            while (!Boolean.TRUE.equals(value(connection, "SELECT pg_is_in_recovery()"))) {
                equal(System.nanoTime() < deadline, true);
                Thread.sleep(50);
            }
        }
    }

    static void readYourWrite() throws SQLException {
        try (Connection connection = session()) {
            for (int number = 700; number < 750; number++) {
                execute(connection, "INSERT INTO " + TABLE + " VALUES (" + number + ")");
                equal(value(connection, "SELECT id FROM " + TABLE + " WHERE id = ?", number), number);
            }
        }
    }

    static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char one : text.substring(0, Math.min(600, text.length())).toCharArray()) {
            out.append(one < ' ' || one == '"' || one == '\\' ? String.format("\\u%04x", (int) one) : "" + one);
        }
        return out.append('"').toString();
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("connect", Jdbc::connect);
        checks.put("types", Jdbc::types);
        checks.put("prepared", Jdbc::prepared);
        checks.put("commit", Jdbc::commit);
        checks.put("rollback", Jdbc::rollback);
        checks.put("savepoint", Jdbc::savepoint);
        checks.put("error", Jdbc::error);
        checks.put("error_in_transaction", Jdbc::errorInTransaction);
        checks.put("copy_in", Jdbc::copyIn);
        checks.put("copy_out", Jdbc::copyOut);
        checks.put("cursor", Jdbc::cursor);
        checks.put("cancel", Jdbc::cancel);
        checks.put("listen", Jdbc::listen);
        checks.put("big_row", Jdbc::bigRow);
        checks.put("batch", Jdbc::batch);
        checks.put("settings", Jdbc::settings);
        checks.put("many_connections", Jdbc::manyConnections);
        checks.put("replica", Jdbc::replica);
        checks.put("read_your_write", Jdbc::readYourWrite);

        java.io.PrintStream out = new java.io.PrintStream(System.out, true, "UTF-8");
        out.println("{\"version\": " + quoted(org.postgresql.util.DriverInfo.DRIVER_VERSION) + "}");
        for (Map.Entry<String, Check> each : checks.entrySet()) {
            String detail = "";
            try {
                each.getValue().run();
            } catch (Exception | AssertionError error) {
                detail = error.toString();
            }
            out.println("{\"check\": " + quoted(each.getKey()) + ", \"ok\": " + detail.isEmpty() + ", \"detail\": "
                + quoted(detail) + "}");
        }
    }
}
